package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A VM's lock is an open file description lock (fcntl(2), F_OFD_SETLK): it
// goes when its holder dies, as a flock does, but others can ask for it
// without taking it. A listing that took each lock for a moment would make a
// VM that is just being created or removed look as if somebody else had it.

// tryLock takes the lock of a file, which it makes if there is none, until
// the file that it returns is closed; nil: somebody else has it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// look reports whether somebody has the lock of a file, and whether it is
// marked.
func look(path string) (held, marked bool) {
	f, err := os.Open(path)
	if err != nil {
		return false, false
	}
	defer func() { _ = f.Close() }()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err == nil && l.Type != unix.F_UNLCK {
		return true, false
	}
	st, err := f.Stat()
	return false, err == nil && st.Size() > 0
}

// mark says in a lock's file that its VM has ended and that its record says so,
// so that nobody need read the record to know. Without the mark they do.
func mark(lock *os.File) { _, _ = lock.WriteAt([]byte("ended\n"), 0) }
