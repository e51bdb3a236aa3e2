package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// goneTimeout bounds the wait for a supervisor whose VM has ended to be gone: it
// lets the guest write its disks, takes down the VM, and then what was made around
// it, and each of these may take 20 seconds.
const (
	goneTimeout = 90 * time.Second
	gonePoll    = 10 * time.Millisecond
)

// vmsOptions is what commands take that do one thing to several VMs.
type vmsOptions struct{ vms []string }

// newVMsCommand makes a command that does one thing to several VMs.
func newVMsCommand(a *app, cmd *cobra.Command, o *vmsOptions, want func(store.Entry) bool, run func(context.Context) error) *cobra.Command {
	cmd.GroupID = groupVMs
	cmd.Args = oneOrMore("VM")
	cmd.ValidArgsFunction = completeVMs(a, want)
	cmd.RunE = interruptible(func(ctx context.Context, args []string) error {
		o.vms = args
		return run(ctx)
	})
	return cmd
}

// vmsAtOnce is how many VMs one command has something done to at a time.
const vmsAtOnce = 16

// errNothing: there was nothing to do, and nothing is to be said.
var errNothing = errors.New("nothing to do")

// eachVM does something to each of the VMs, many at a time, and prints what it was
// given of those where it worked, in that order. One that fails does not keep it
// from the others.
func (a *app) eachVM(ctx context.Context, refs []string, do func(*store.Store, string) error) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	errs := make([]error, len(refs))
	done := sideBySide(len(refs), vmsAtOnce, func(i int) {
		if errs[i] = context.Cause(ctx); errs[i] == nil {
			errs[i] = do(st, refs[i])
		}
	})
	var failed []error
	for i, ref := range refs {
		<-done[i]
		switch err := errs[i]; {
		case errors.Is(err, errNothing):
		case err == nil:
			_, _ = fmt.Fprintln(a.sys.Stdout, ref)
		case ctx.Err() == nil || !errors.Is(err, context.Cause(ctx)):
			failed = append(failed, err)
		}
	}
	return errors.Join(append(failed, context.Cause(ctx))...)
}

// sideBySide does something n times, at most so many at a time, and returns what is
// closed when each is done.
func sideBySide(n, limit int, do func(i int)) []chan struct{} {
	done := make([]chan struct{}, n)
	room := make(chan struct{}, limit)
	for i := range done {
		done[i] = make(chan struct{})
		go func() {
			defer close(done[i])
			room <- struct{}{}
			defer func() { <-room }()
			do(i)
		}()
	}
	return done
}

// allDone returns when all of sideBySide is done.
func allDone(done []chan struct{}) {
	for _, d := range done {
		<-d
	}
}

// eachEntry is eachVM for what needs to know of the VM.
func (a *app) eachEntry(ctx context.Context, refs []string, do func(*store.Store, store.Entry) error) error {
	return a.eachVM(ctx, refs, func(st *store.Store, ref string) error {
		e, err := st.Find(ref)
		if err != nil {
			return err
		}
		return do(st, e)
	})
}

// supervisorOf returns a client of the supervisor of a VM that runs.
func supervisorOf(st *store.Store, e store.Entry) (*control.Client, error) {
	if !e.Alive {
		return nil, notRunning(e)
	}
	path, err := st.Layout().ControlSocket(e.Record.ID)
	if err != nil {
		return nil, err
	}
	return control.New(path, func() bool { return st.Alive(e.Record.ID) }), nil
}

// notRunning says what a VM is instead, and why.
func notRunning(e store.Entry) error {
	if e.Err != nil {
		return fmt.Errorf("%w: %s is not known: %w", vm.ErrNotRunning, nameOf(e), e.Err)
	}
	text := fmt.Sprintf("%s is %s", nameOf(e), e.Record.Status)
	if e.Record.Reason != "" {
		text += " (" + e.Record.Reason + ")"
	}
	return fmt.Errorf("%w: %s", vm.ErrNotRunning, text)
}

// ask has a VM's supervisor do something. what is for messages: "stop".
func ask(st *store.Store, e store.Entry, what string, do func(*control.Client) error) error {
	c, err := supervisorOf(st, e)
	if err == nil {
		err = do(c)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, nameOf(e), err)
	}
	return nil
}

// nameOf is what people call a VM; one whose record is broken has only an id.
func nameOf(e store.Entry) string {
	if e.Record.Name != "" {
		return e.Record.Name
	}
	return e.Record.ID
}

// askEnd has a VM end, and returns when its supervisor is gone, too. One that
// has ended already, or does so meanwhile, is no error.
func askEnd(ctx context.Context, st *store.Store, e store.Entry, what string, do func(*control.Client) error) error {
	if !e.Alive {
		return nil
	}
	err := ask(st, e, what, do)
	if err != nil && !errors.Is(err, control.ErrGone) && !errors.Is(err, vm.ErrNotRunning) {
		return err
	}
	if werr := waitGone(ctx, st, e.Record.ID); werr != nil {
		return errors.Join(err, fmt.Errorf("%s %s: %w", what, nameOf(e), werr))
	}
	return nil
}

// waitGone waits until nobody holds the VM's lock.
func waitGone(ctx context.Context, st *store.Store, id string) error {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	for st.Alive(id) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("its supervisor does not end: %w", context.Cause(ctx))
		case <-time.After(gonePoll):
		}
	}
	return nil
}
