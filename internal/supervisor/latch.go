package supervisor

import (
	"context"
	"sync"
)

// latch is something that becomes known once.
type latch struct {
	once sync.Once
	done chan struct{}
	err  error
}

func newLatch() *latch { return &latch{done: make(chan struct{})} }

// set makes it known; only the first time counts.
func (l *latch) set(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.done)
	})
}

// now is what is known by now; nil as long as nothing is.
func (l *latch) now() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

func (l *latch) wait(ctx context.Context) error {
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
