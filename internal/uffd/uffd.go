// Package uffd is the kernel's userfaultfd(2): one process tells another which
// pages of its memory to fill. It knows ioctls and messages, and nothing of
// what they are used for.
//
// The side whose memory it is opens a descriptor, registers ranges and sends
// the descriptor away; Firecracker does so itself (Open and Register are for
// tests that play its part). The other side wraps what it has received with
// FromFD, waits for events with Read, and answers faults with Copy or Zero.
//
// The structures and numbers are those of linux/userfaultfd.h; what they mean
// is in ioctl_userfaultfd(2) and in Documentation/admin-guide/mm/userfaultfd.rst
// of the kernel's source. Linux 5.7 or later.
package uffd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors of Copy and Zero.
var (
	// ErrExists: the first page is there already. Whoever waits for it may have
	// to be woken (Wake).
	ErrExists = errors.New("the page is there already")
	// ErrChanging: an event about the layout of the memory is unread, or its
	// sender has not gone on yet. Read it, and try again.
	ErrChanging = errors.New("the memory's layout is changing")
	// ErrUnmapped: the range is not mapped, or not registered, any more.
	ErrUnmapped = errors.New("the memory is not registered")
	// ErrGone: the process whose memory it is has ended.
	ErrGone = errors.New("the process has ended")
)

// ErrNotUserfaultfd: a descriptor is something else.
var ErrNotUserfaultfd = errors.New("the descriptor is not a userfaultfd")

// Feature is a set of UFFD_FEATURE_ bits.
type Feature uint64

// Features of which this package parses the events.
const (
	FeatureEventRemove Feature = 1 << 3
	FeatureEventUnmap  Feature = 1 << 6
)

// FD is a userfaultfd. One goroutine at a time may call Read and TryRead; all
// other methods are safe for concurrent use.
type FD struct {
	file *os.File
	raw  syscall.RawConn
	buf  [maxMessages * messageSize]byte
}

// Open makes a userfaultfd for the memory of this process. Faults of the kernel
// (KVM, read(2) into the memory) are among its events only where this process
// may see them: by CAP_SYS_PTRACE, by access to /dev/userfaultfd, or by
// vm.unprivileged_userfaultfd=1.
func Open(want Feature) (*FD, error) {
	fd, err := create()
	if err != nil {
		return nil, fmt.Errorf("open a userfaultfd: %w", err)
	}
	// Before the runtime's poller looks at it: it takes a descriptor without a
	// version for a broken one.
	a := apiArg{api: apiVersion, features: uint64(want)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlAPI, uintptr(unsafe.Pointer(&a))); errno != 0 {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open a userfaultfd with features %#x: %w", uint64(want), errno)
	}
	return wrap(fd)
}

// create tries the ways from the one that may be given to a user by file
// permissions to the one that is open to all.
func create() (int, error) {
	if dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
		_ = unix.Close(dev)
		if errno == 0 {
			return int(fd), nil
		}
	}
	var errno syscall.Errno
	for _, mode := range []uintptr{0, userModeOnly} {
		var fd uintptr
		fd, _, errno = unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|mode, 0, 0)
		if errno == 0 {
			return int(fd), nil
		}
	}
	return -1, errno
}

// FromFD wraps a descriptor that another process has made and registered, and
// owns it from now on, in case of an error too.
func FromFD(fd int) (*FD, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && name != "anon_inode:[userfaultfd]" {
		err = fmt.Errorf("%w but %q", ErrNotUserfaultfd, name)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("take over a userfaultfd: %w", err)
	}
	return wrap(fd)
}

// wrap makes the descriptor one that the runtime's poller can wait for: a
// userfaultfd that blocks is never ready for poll(2).
func wrap(fd int) (*FD, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("take over a userfaultfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "userfaultfd")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FD{file: f, raw: raw}, nil
}

// Close lets the descriptor go. When it was the last one for its memory, pages
// that are missing become zeros.
func (u *FD) Close() error { return u.file.Close() }

// Control calls f with the descriptor's number, as to send it to another
// process. It stays open at least until f returns.
func (u *FD) Control(f func(fd uintptr)) error { return u.raw.Control(f) }

// Read waits for events and returns as many as are there, up to len(events),
// and at most 32. Once ctx has ended, it returns its cause, and so does every
// later call.
func (u *FD) Read(ctx context.Context, events []Event) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = u.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := u.read(events, true)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, context.Cause(ctx)
	}
	return n, err
}

// TryRead is Read that does not wait: without events it returns 0.
func (u *FD) TryRead(events []Event) (int, error) { return u.read(events, false) }

func (u *FD) read(events []Event, wait bool) (int, error) {
	buf := u.buf[:min(len(events), maxMessages)*messageSize]
	var n int
	var err error
	pollErr := u.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), buf)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		return !wait || !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case pollErr != nil:
		return 0, fmt.Errorf("wait for page faults: %w", pollErr)
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read page faults: %w", err)
	}
	for i := range n / messageSize {
		events[i] = parse(buf[i*messageSize : (i+1)*messageSize])
		events[i].closeChild()
	}
	return n / messageSize, nil
}
