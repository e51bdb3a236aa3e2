package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// writeTimeout is how long a guest may take to write disks that are kept: as
	// long as a page cache of gigabytes takes on a slow disk.
	writeTimeout = time.Minute
	// answerTimeout is how long it may take to say that it does.
	answerTimeout = 20 * time.Second
)

var errUnwritten = errors.New("what the guest had not written to its disks is lost")

// shutDown lets a guest whose disks are kept write them. The others are ended
// with their VMM, which is faster.
func (in *instance) shutDown(ctx context.Context, err error) {
	in.gone.set(nil)
	if err != nil || in.signals.killed() != nil || !in.writesKept() {
		return
	}
	if err := in.powerOff(ctx, answerTimeout); err != nil {
		in.trouble = append(in.trouble, err)
	}
}

// writesKept reports whether a guest runs that writes to what outlives its VM.
func (in *instance) writesKept() bool {
	return in.machine != nil && in.agent != nil && (!in.Spec.Remove || in.keepsDisks())
}

// powerOff has the guest write its disks, and end. It has to answer within a time
// of its own: one that hangs is not waited for.
func (in *instance) powerOff(ctx context.Context, answer time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	ask, cancelAsk := context.WithTimeout(ctx, answer)
	err := in.agent.Shutdown(ask)
	cancelAsk()
	if err != nil {
		select {
		case <-in.machine.Done(): // by itself
			return nil
		case <-time.After(exitGrace):
			return fmt.Errorf("%w: %w", errUnwritten, err)
		}
	}
	select {
	case <-in.machine.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: it was at it for %s", errUnwritten, writeTimeout)
	}
}
