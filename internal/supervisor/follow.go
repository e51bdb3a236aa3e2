package supervisor

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/vm"
)

// exitKilled is 128 + SIGKILL.
const exitKilled = 137

// unreadGrace is how long the output of a VM that was killed may take to be read.
// A reader that has stopped reading must not keep the rest from its end.
const unreadGrace = 2 * time.Second

var errUnread = errors.New("nobody reads the output")

// follow passes the container's streams on until it has ended.
func (in *instance) follow(ctx context.Context) (int, error) {
	// Signals are the container's from here on.
	if !in.signals.setForward(func(sig int) { _ = in.stream.Signal(sig) }) {
		return 0, context.Cause(ctx)
	}
	defer in.signals.setForward(nil)
	ctx = context.WithoutCancel(ctx)
	in.begun()
	defer in.watch(ctx)()
	exit, err := in.passOn(ctx, in.stream, agentclient.Stdio{Stdin: in.stdin, Stdout: in.out, Stderr: in.err, Resize: in.sizes})
	return in.outcome(ctx, in.vm.Record().Resolved.Command, exit, err)
}

// runCommand runs the command that a clone was made for, once the clone is ready,
// and returns its exit code. The container goes on beside it, and ends with the VM.
func (in *instance) runCommand(ctx context.Context) (int, error) {
	go func() { // what it writes, nobody has asked for
		_, _ = in.stream.Run(context.WithoutCancel(ctx), agentclient.Stdio{Stdin: OpenInput{}, Stdout: in.watchOutput(nil), Stderr: in.watchOutput(nil)})
	}()
	defer in.watch(context.WithoutCancel(ctx))()
	if err := in.waitReady(ctx); err != nil {
		return 0, err
	}
	s, err := in.agent.Exec(ctx, agentapi.ExecRequest{Args: in.Clone.Exec, Stdin: in.Stdio.In != nil})
	if err != nil {
		return 0, in.guestError(ctx, err)
	}
	if !in.signals.setForward(func(sig int) { _ = s.Signal(sig) }) {
		return 0, context.Cause(ctx)
	}
	defer in.signals.setForward(nil)
	ctx = context.WithoutCancel(ctx)
	in.begun()
	exit, err := in.passOn(ctx, s, agentclient.Stdio{Stdin: in.stdin, Stdout: in.Stdio.Out, Stderr: in.Stdio.Err, Resize: in.sizes})
	return in.outcome(ctx, in.Clone.Exec, exit, err)
}

// begun says that what the VM was started for runs.
func (in *instance) begun() {
	in.ran = true
	if in.Started != nil {
		in.Started()
	}
}

// waitReady returns when the readiness gate is open, or says why it will not be.
func (in *instance) waitReady(ctx context.Context) error {
	ready := in.readiness()
	select {
	case <-ready.done:
		return ready.err
	case <-in.failure.done:
		return in.failure.err
	case <-in.machine.Done():
		return in.guestError(ctx, ErrGuest)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watch starts what goes on beside the container; stop ends it, and returns when
// it has ended: it writes to the record.
func (in *instance) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() { in.watchNetwork(ctx) })
	if in.vm.Record().Status == vm.StatusRunning {
		all.Go(func() { in.watchGate(ctx) })
		all.Go(func() { in.watchHealth(ctx) })
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// passOn runs a stream to its end, or, when the VM was ended from outside of it,
// until nobody has read what is left for a while.
func (in *instance) passOn(ctx context.Context, s *agentclient.Stream, io agentclient.Stdio) (agentapi.Exit, error) {
	type end struct {
		exit agentapi.Exit
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		exit, err := s.Run(ctx, io)
		ended <- end{exit, err}
	}()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	select {
	case e := <-ended:
		return e.exit, e.err
	case <-in.abandoned(ctx):
		return agentapi.Exit{}, errUnread
	}
}

// abandoned is closed some time after the VM was ended from outside of it.
func (in *instance) abandoned(ctx context.Context) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		select {
		case <-in.signals.dead.done:
		case <-in.failure.done:
		case <-ctx.Done():
			return
		}
		select {
		case <-in.machine.Done():
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(unreadGrace):
			close(over)
		case <-ctx.Done():
		}
	}()
	return over
}

// outcome is what became of a command whose stream has ended.
func (in *instance) outcome(ctx context.Context, args []string, exit agentapi.Exit, err error) (int, error) {
	in.finished = true
	in.gone.set(nil)
	switch failed := in.failure.now(); {
	case failed != nil:
		return 0, failed
	case in.signals.killed() != nil:
		return exitKilled, nil
	case err != nil:
		return 0, in.guestError(ctx, err)
	case exit.Failed:
		return exit.Code, &StartError{Args: args, Exit: exit}
	}
	return exit.Code, nil
}

// fail ends the VM for a reason that is not its own.
func (in *instance) fail(err error) {
	in.failure.set(err)
	_ = in.machine.Kill(context.Background())
}
