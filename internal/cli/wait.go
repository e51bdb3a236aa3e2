package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type waitOptions struct {
	vmsOptions
	ready bool
}

func newWaitCommand(a *app, run func(context.Context, *app, *waitOptions) error) *cobra.Command {
	o := new(waitOptions)
	cmd := newVMsCommand(a, &cobra.Command{
		Use:   "wait VM...",
		Short: "Wait until VMs have ended, and print their exit codes",
		Long: `Wait until VMs have ended for good, and print the exit codes of their
containers, one per line; 125 for one that never ran. With --ready, wait until
their readiness gates are open instead, and print nothing.`,
		Example: `  fcvm wait job
  fcvm wait --ready web && curl localhost:8080`,
	}, &o.vmsOptions, anyVM, func(ctx context.Context) error { return run(ctx, a, o) })
	cmd.Flags().BoolVar(&o.ready, "ready", false, "wait until they are ready")
	return cmd
}

func runWait(ctx context.Context, a *app, o *waitOptions) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	// All are looked up first: a VM with --rm is gone when it has ended.
	entries := make([]store.Entry, 0, len(o.vms))
	for _, ref := range o.vms {
		e, err := st.Find(ref)
		if err = errors.Join(err, e.Err); err != nil {
			return err
		}
		entries = append(entries, e)
	}
	// Side by side: one that is forgotten when it has ended cannot be asked later.
	codes, errs := make([]int, len(entries)), make([]error, len(entries))
	done := sideBySide(len(entries), len(entries), func(i int) {
		e := entries[i]
		if o.ready {
			errs[i] = ask(st, e, "wait for", func(c *control.Client) error { return c.WaitReady(ctx) })
		} else if codes[i], errs[i] = waitEnd(ctx, st, e); errs[i] != nil {
			errs[i] = fmt.Errorf("wait for %s: %w", nameOf(e), errs[i])
		}
	})
	for i := range entries {
		<-done[i]
		if !o.ready && errs[i] == nil {
			_, _ = fmt.Fprintln(a.sys.Stdout, codes[i])
		}
	}
	return errors.Join(errs...)
}

// waitEnd returns the exit code of a VM's container once it has ended.
func waitEnd(ctx context.Context, st *store.Store, e store.Entry) (int, error) {
	if e.Alive {
		c, err := supervisorOf(st, e)
		if err != nil {
			return 0, err
		}
		ended, err := c.Wait(ctx)
		if !errors.Is(err, control.ErrGone) {
			return ended.ExitCode, err
		}
		// It ended before it could be asked, or without a word.
		if err := waitGone(ctx, st, e.Record.ID); err != nil {
			return 0, err
		}
		found, err := st.Find(e.Record.ID)
		if errors.Is(err, vm.ErrNotFound) {
			return lastWord(st, e.Record.ID)
		}
		if err != nil {
			return 0, err
		}
		e = found
	}
	return codeOf(e.Record.ExitCode), nil
}

// lastWord is the exit code of a VM that is gone, from what it told of its end.
func lastWord(st *store.Store, id string) (code int, err error) {
	err = errors.New("it has ended and was removed; its exit code is not known")
	readErr := events.New(st.Layout().Events()).Read(time.Time{}, func(e events.Event) error {
		if e.ID == id && e.Kind == events.Stopped {
			code, err = codeOf(e.ExitCode), nil
		}
		return nil
	})
	return code, errors.Join(err, readErr)
}

// codeOf is an exit code, or that of a container that never ran.
func codeOf(code *int) int {
	if code == nil {
		return exitFailed
	}
	return *code
}
