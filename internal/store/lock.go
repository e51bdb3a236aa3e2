package store

import (
	"fmt"
	"os"

	"github.com/fcvm/fcvm/internal/ofdlock"
)

// tryLock takes the lock of a file, which it makes if there is none, until
// the file that it returns is closed; nil: somebody else has it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ok, err := ofdlock.Try(f, ofdlock.Exclusive)
	if ok {
		return f, nil
	}
	_ = f.Close()
	if err != nil {
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	return nil, err
}

// look reports whether somebody has the lock of a file, and whether it is
// marked.
func look(path string) (held, marked bool) {
	f, err := os.Open(path)
	if err != nil {
		return false, false
	}
	defer func() { _ = f.Close() }()
	if ofdlock.Held(f) {
		return true, false
	}
	st, err := f.Stat()
	return false, err == nil && st.Size() > 0
}

// mark says in a lock's file that its VM has ended and that its record says so,
// so that nobody need read the record to know. Without the mark they do.
func mark(lock *os.File) { _, _ = lock.WriteAt([]byte("ended\n"), 0) }
