package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// killGrace is how long a guest has to carry out a SIGKILL before its VM is
// ended instead.
const killGrace = 5 * time.Second

const maxSignal = 64 // SIGRTMAX

// commands is a life as its control socket offers it.
type commands life

var _ control.VM = (*commands)(nil)

// running returns the instance whose container runs.
func (c *commands) running() (*instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch status := c.vm.Record().Status; {
	case c.current == nil && status == vm.StatusPaused:
		return nil, errEnded
	case status == vm.StatusPaused:
		return c.current, vm.ErrPaused
	case c.current == nil || (status != vm.StatusRunning && status != vm.StatusStopping):
		return nil, fmt.Errorf("%w: it is %s", vm.ErrNotRunning, status)
	}
	return c.current, nil
}

// DialAgent implements control.VM.
func (c *commands) DialAgent(ctx context.Context) (net.Conn, error) {
	in, err := c.running()
	if err != nil {
		return nil, err
	}
	return in.machine.Dial(ctx)
}

// Stop implements control.VM. Whoever has asked may go away meanwhile: a stop
// that has begun goes on, to the kill at its end.
func (c *commands) Stop(ctx context.Context, timeout time.Duration) error {
	ctx = context.WithoutCancel(ctx)
	in := c.askEnd()
	if c.signals.interrupt() || in == nil {
		return c.over.wait(ctx)
	}
	c.capturing.Lock() // what is paused for a snapshot must not go on before it is taken
	c.wake(ctx, in, true)
	c.capturing.Unlock()
	c.signals.send(c.stopSignal())
	if in.goneWithin(ctx, timeout) {
		return ctx.Err()
	}
	return c.kill(ctx, in)
}

// askEnd says that the VM is not to be started again, and returns what runs.
func (c *commands) askEnd() *instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	return c.current
}

// wake says that the VM is about to end, and lets a paused one go on if it may, so
// that it can. It ends all the same where neither works: its record cannot be
// written as long as the disk is full, and a guest that stands still is killed.
func (c *commands) wake(ctx context.Context, in *instance, resume bool) {
	now := time.Now()
	stopping := func(r *vm.Record) error {
		if r.Status == vm.StatusStopping || r.Status.Final() {
			return nil
		}
		return r.Move(vm.StatusStopping, "", now)
	}
	paused := false
	err := c.vm.Update(func(r *vm.Record) error {
		paused = r.Status == vm.StatusPaused
		return stopping(r)
	})
	if err != nil {
		c.Verbose(err.Error())
		(*life)(c).later(func(r *vm.Record) { _ = stopping(r) })
	}
	if !paused || !resume {
		return
	}
	if err := in.machine.Resume(ctx); err != nil {
		c.Verbose("let the guest go on: " + err.Error())
	}
}

func (c *commands) stopSignal() int {
	if n, err := ParseSignal(c.image.Config.StopSignal); err == nil {
		return n
	}
	return int(unix.SIGTERM)
}

// goneWithin reports whether the container has ended in time, or the caller
// has gone.
func (in *instance) goneWithin(ctx context.Context, timeout time.Duration) bool {
	var late <-chan time.Time
	if timeout >= 0 {
		late = time.After(timeout)
	}
	select {
	case <-in.gone.done:
		return true
	case <-ctx.Done():
		return true
	case <-late:
		return false
	}
}

// kill ends the container, or the VM if the guest does not. What holds the guest up
// may be what it writes: it is to write that first, if it is kept.
func (c *commands) kill(ctx context.Context, in *instance) error {
	c.signals.send(int(unix.SIGKILL))
	if in.goneWithin(ctx, killGrace) {
		return ctx.Err()
	}
	c.signals.doom()
	if in.writesKept() {
		if err := in.powerOff(ctx, killGrace); err != nil {
			c.Verbose(err.Error())
		}
	}
	c.signals.killNow()
	return in.gone.wait(ctx)
}

// Kill implements control.VM.
func (c *commands) Kill(ctx context.Context, signal int) error {
	if signal <= 0 || signal > maxSignal {
		return fmt.Errorf("%w: signal %d", vm.ErrInvalid, signal)
	}
	if signal != int(unix.SIGKILL) {
		if _, err := c.running(); err != nil {
			return err
		}
		c.signals.send(signal)
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	in := c.askEnd()
	if c.signals.interrupt() || in == nil {
		return c.over.wait(ctx)
	}
	// A guest that stands still for a snapshot is not waited for: its VM is killed.
	free := c.capturing.TryLock()
	c.wake(ctx, in, free)
	if free {
		c.capturing.Unlock()
	}
	return c.kill(ctx, in)
}

// Pause implements control.VM.
func (c *commands) Pause(ctx context.Context) error {
	in, err := c.running()
	if errors.Is(err, vm.ErrPaused) {
		return nil
	}
	if err != nil {
		return err
	}
	in.capturing.Lock()
	defer in.capturing.Unlock()
	if c.vm.Record().Status == vm.StatusPaused { // by somebody else, meanwhile
		return nil
	}
	ctx = context.WithoutCancel(ctx) // a pause that is given up half-way is none that anybody knows of
	err = in.machine.Pause(ctx)
	if err == nil {
		err = c.vm.Move(vm.StatusPaused, "")
	}
	if err != nil {
		in.unpause(ctx)
		return err
	}
	c.vm.Tell(events.Paused, "")
	return nil
}

// Resume implements control.VM. The machine is asked whatever the record says: one
// that runs does not mind, and one that stands still in spite of it goes on.
func (c *commands) Resume(ctx context.Context) error {
	in, err := c.running()
	paused := errors.Is(err, vm.ErrPaused)
	if err != nil && !paused {
		return err
	}
	if went, err := c.goOn(ctx, in, paused); err != nil || !went {
		return err
	}
	in.catchUp(ctx) // the guest may be paused again, or stopped, meanwhile
	return nil
}

// goOn lets a VM that is paused go on, and reports whether it was.
func (c *commands) goOn(ctx context.Context, in *instance, paused bool) (went bool, err error) {
	if paused {
		in.capturing.Lock()
	} else if !in.capturing.TryLock() {
		return false, nil // it goes on once its snapshot is taken
	}
	defer in.capturing.Unlock()
	if err := in.machine.Resume(context.WithoutCancel(ctx)); err != nil {
		return false, err
	}
	if c.vm.Record().Status != vm.StatusPaused {
		return false, nil
	}
	if err := c.vm.Move(vm.StatusRunning, ""); err != nil {
		return true, err
	}
	c.vm.Tell(events.Resumed, "")
	return true, nil
}

// Rename implements control.VM.
func (c *commands) Rename(_ context.Context, name string) error {
	if err := c.vm.Rename(name); err != nil {
		return err
	}
	c.mu.Lock()
	in := c.current
	c.mu.Unlock()
	if in == nil || in.net == nil {
		return nil
	}
	if r, ok := in.net.(network.Renamer); ok {
		return r.Rename(name)
	}
	return nil
}

// Update implements control.VM.
func (c *commands) Update(ctx context.Context, u control.UpdateRequest) error {
	in, err := c.running()
	if err != nil {
		return err
	}
	if u.BalloonMiB == nil {
		return fmt.Errorf("%w: nothing to update", vm.ErrInvalid)
	}
	return in.setBalloon(ctx, *u.BalloonMiB)
}

// Wait implements control.VM.
func (c *commands) Wait(ctx context.Context) (control.Ended, error) {
	if err := c.over.wait(ctx); err != nil {
		return control.Ended{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended, nil
}

// WaitReady implements control.VM.
func (c *commands) WaitReady(ctx context.Context) error {
	return (*life)(c).readiness().wait(ctx)
}

// ParseSignal reads a signal's name, with or without SIG, or its number.
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= maxSignal {
		return n, nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	if n, ok := realTimeSignal(name); ok {
		return n, nil
	}
	return 0, fmt.Errorf("%w: %q is no signal", vm.ErrInvalid, s)
}

// realTimeSignal reads SIGRTMIN[+N] and SIGRTMAX[-N], as the C library numbers
// them (signal(7)): the kernel's first two are its own.
func realTimeSignal(name string) (int, bool) {
	for _, base := range []struct {
		name   string
		number int
		sign   string
	}{{"SIGRTMIN", 34, "+"}, {"SIGRTMAX", maxSignal, "-"}} {
		offset, ok := strings.CutPrefix(name, base.name)
		if !ok {
			continue
		}
		if offset == "" {
			return base.number, true
		}
		digits, ok := strings.CutPrefix(offset, base.sign)
		n, err := strconv.ParseUint(digits, 10, 8)
		if !ok || err != nil || n > maxSignal-34 {
			return 0, false
		}
		if base.sign == "-" {
			return base.number - int(n), true
		}
		return base.number + int(n), true
	}
	return 0, false
}

// DialAgent returns a way to reach the agent of a VM that another process
// runs, through its supervisor.
func DialAgent(st *store.Store, id string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		path, err := st.Layout().ControlSocket(id)
		if err != nil {
			return nil, err
		}
		return control.New(path, func() bool { return st.Alive(id) }).DialAgent(ctx)
	}
}
