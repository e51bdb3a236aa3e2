// Package ofdlock has open file description locks (fcntl(2), F_OFD_SETLK). As an
// flock, one goes when its holder closes the file or dies; but others can ask for
// it without taking it. A listing that took each lock for a moment would make
// others believe that somebody else had what is just being made, or removed.
package ofdlock

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Kind is how a file is locked.
type Kind int16

// The two kinds: with others that only read, or alone. The file must be open for
// reading, or for writing.
const (
	Shared    Kind = unix.F_RDLCK
	Exclusive Kind = unix.F_WRLCK
)

// Try locks a file, or changes the lock that it has, until it is closed; false:
// others have it.
func Try(f *os.File, how Kind) (bool, error) {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: int16(how)})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// Held reports whether somebody else has a lock of any kind on a file.
func Held(f *os.File) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK
}
