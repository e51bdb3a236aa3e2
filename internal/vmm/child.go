package vmm

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// Child is the part of a Machine that is the same for every VMM: its process.
// Drivers embed it.
type Child struct {
	name string
	proc Process
	done chan struct{}
	exit Exit
}

// WatchChild waits for a VMM's process in the background. name is the VMM's,
// for messages; console and log are the paths of what the guest and the VMM
// write, in which the reason for its end is looked for.
func WatchChild(name string, p Process, console, log string) *Child {
	c := &Child{name: name, proc: p, done: make(chan struct{})}
	go func() {
		c.exit = Explain(p.Wait(), name, console, log)
		close(c.done)
	}()
	return c
}

// Done implements Machine.
func (c *Child) Done() <-chan struct{} { return c.done }

// Exit implements Machine.
func (c *Child) Exit() Exit { <-c.done; return c.exit }

// PID implements Machine.
func (c *Child) PID() int { return c.proc.PID() }

// Kill implements Machine.
func (c *Child) Kill(ctx context.Context) error {
	if err := c.proc.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", c.name, err)
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill %s: %w", c.name, context.Cause(ctx))
	}
}

// Err is nil while the VMM runs, and says how it ended (ErrExited) once it has.
func (c *Child) Err() error {
	select {
	case <-c.done:
		if c.exit.Signal == int(syscall.SIGKILL) {
			return fmt.Errorf("%w: %w", ErrExited, ErrKilled)
		}
		return fmt.Errorf("%w: %s", ErrExited, c.exit.Reason)
	default:
		return nil
	}
}

// Cause returns what a failed call to the VMM came from: how the VMM ended, if
// it does so within a moment, else err.
func (c *Child) Cause(ctx context.Context, err error) error {
	const moment = time.Second
	select {
	case <-c.done:
		return c.Err()
	case <-time.After(moment):
	case <-ctx.Done():
	}
	return err
}

// Explain adds what console and log tell to how a VMM's process ended.
func Explain(e Exit, name, console, log string) Exit {
	if e.Signal != 0 {
		return e
	}
	if p := PanicLine(console); p != "" {
		e.Reason = "the guest's kernel panicked: " + p
		return e
	}
	if e.Code == 0 {
		e.Reason = "the guest powered off"
		return e
	}
	e.Reason = fmt.Sprintf("%s ended with status %d", name, e.Code)
	if l := Tail(log, 1); len(l) == 1 {
		e.Reason = fmt.Sprintf("%s failed: %s", name, l[0])
	}
	return e
}
