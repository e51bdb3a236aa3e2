package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const lockPoll = 50 * time.Millisecond

// lock is a flock on a file that exists only while somebody holds or wants
// it. The kernel lets it go when its process dies.
type lock struct{ f *os.File }

// tryLock takes the lock, or returns nil when another has it: another
// process, or another call in this one.
func tryLock(path string) (*lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, nil
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Who had it before may have removed the file since it was opened.
		mine, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return &lock{f}, nil
		}
		_ = f.Close()
	}
}

// takeLock waits for the lock; it calls busy once if it has to wait.
func takeLock(ctx context.Context, path string, busy func()) (*lock, error) {
	for {
		l, err := tryLock(path)
		if l != nil || err != nil {
			return l, err
		}
		if busy != nil {
			busy()
			busy = nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// release removes the file while the lock is held, so that nobody can hold a
// lock on a file that has no name.
func (l *lock) release() {
	_ = os.Remove(l.f.Name())
	_ = l.f.Close()
}
