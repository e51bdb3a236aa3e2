package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/ofdlock"
)

// ErrInUse: somebody else writes to a disk, or reads one that is to be written.
var ErrInUse = errors.New("is in use")

// Hold is a disk that a VM may use for as long as it holds this: by itself, or
// with others that only read. The kernel lets it go when its process dies.
type Hold struct {
	Path string // of the disk
	lock *os.File
	excl *os.File // keeps the host from a block device that is written; else nil
}

// Close lets the disk go.
func (h *Hold) Close() error {
	if h.excl != nil {
		_ = h.excl.Close()
	}
	return h.lock.Close()
}

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
	h, err := hold(f, path, readOnly, tryFlock)
	if err != nil {
		return nil, fmt.Errorf("attach the disk %s: %w", path, err)
	}
	if err := h.exclude(readOnly); err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("attach the disk %s: %w", path, err)
	}
	return h, nil
}

// exclude refuses a block device that the host has mounted, or uses in another way,
// and keeps the host from one as long as a VM writes to it. VMs that read a device
// together cannot all have it exclusively, so each of them only asks.
func (h *Hold) exclude(readOnly bool) error {
	fi, err := h.lock.Stat()
	if err != nil || !isBlockDevice(fi) {
		return err
	}
	f, err := openExclusive(h.Path, readOnly, fi)
	if err != nil {
		return err
	}
	if readOnly {
		return f.Close()
	}
	h.excl = f
	return nil
}

// Another VM that reads the same device has it for as long as it asks.
const (
	askTries = 20
	askPause = 10 * time.Millisecond
)

// openExclusive opens a block device that neither a file system nor anybody else who
// wants it for himself has (open(2), O_EXCL).
func openExclusive(path string, readOnly bool, fi fs.FileInfo) (*os.File, error) {
	flags := os.O_RDWR | os.O_EXCL
	if readOnly {
		flags = os.O_RDONLY | os.O_EXCL
	}
	for range askTries {
		f, err := os.OpenFile(path, flags, 0)
		if !errors.Is(err, unix.EBUSY) {
			return f, err
		}
		if at := mountedAt(fi); at != "" {
			return nil, fmt.Errorf("it %w: this host has it mounted at %s; unmount it first", ErrInUse, at)
		}
		time.Sleep(askPause)
	}
	return nil, fmt.Errorf("it %w: this host has mounted it or a part of it, or uses it in another way (lsblk shows it)", ErrInUse)
}

func isBlockDevice(fi fs.FileInfo) bool {
	return fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0
}

// mountedAt is where a block device is mounted (proc(5), mountinfo); empty: nowhere
// that this process sees.
func mountedAt(fi fs.FileInfo) string {
	st, ok := fi.Sys().(*syscall.Stat_t)
	b, err := os.ReadFile("/proc/self/mountinfo")
	if !ok || err != nil {
		return ""
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[2] == number {
			return f[4]
		}
	}
	return ""
}

// hold takes the lock of f by try, or says that others have it.
func hold(f *os.File, disk string, readOnly bool, try func(*os.File, ofdlock.Kind) (bool, error)) (*Hold, error) {
	how := ofdlock.Exclusive
	if readOnly {
		how = ofdlock.Shared
	}
	ok, err := try(f, how)
	if err == nil && ok {
		return &Hold{Path: disk, lock: f}, nil
	}
	_ = f.Close()
	switch {
	case err != nil:
		return nil, err
	case readOnly:
		return nil, fmt.Errorf("it %w: a VM writes to it", ErrInUse)
	}
	return nil, fmt.Errorf("it %w: a disk is written by one VM, or read by many; mount it read-only (:ro) where that will do", ErrInUse)
}

// tryFlock is ofdlock.Try for a disk itself, on which QEMU has locks of that kind.
func tryFlock(f *os.File, how ofdlock.Kind) (bool, error) {
	op := unix.LOCK_EX
	if how == ofdlock.Shared {
		op = unix.LOCK_SH
	}
	err := unix.Flock(int(f.Fd()), op|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
