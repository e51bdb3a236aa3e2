package volume

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse: somebody else writes to a disk, or reads one that is to be written.
var ErrInUse = errors.New("is in use")

// Hold is a disk that a VM may use for as long as it holds this: by itself, or
// with others that only read. The kernel lets it go when its process dies.
type Hold struct {
	Path string // of the disk
	lock *os.File
}

// Close lets the disk go.
func (h *Hold) Close() error { return h.lock.Close() }

// Device takes a disk image or block device of the host's.
func Device(path string, readOnly bool) (*Hold, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("attach the disk: %w", err)
	}
	h, err := hold(f, path, readOnly)
	if err != nil {
		return nil, fmt.Errorf("attach the disk %s: %w", path, err)
	}
	return h, nil
}

// hold takes the lock of f, or says that others have it.
func hold(f *os.File, disk string, readOnly bool) (*Hold, error) {
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return &Hold{Path: disk, lock: f}, nil
	}
	_ = f.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, err
	}
	if readOnly {
		return nil, fmt.Errorf("it %w: a VM writes to it", ErrInUse)
	}
	return nil, fmt.Errorf("it %w: a disk is written by one VM, or read by many; mount it read-only (:ro) where that will do", ErrInUse)
}
