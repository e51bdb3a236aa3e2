package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
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
	var failed []error
	for _, e := range entries {
		if o.ready {
			failed = append(failed, ask(st, e, "wait for", func(c *control.Client) error { return c.WaitReady(ctx) }))
			continue
		}
		code, err := waitEnd(ctx, st, e)
		if err != nil {
			failed = append(failed, fmt.Errorf("wait for %s: %w", nameOf(e), err))
			continue
		}
		_, _ = fmt.Fprintln(a.sys.Stdout, code)
	}
	return errors.Join(failed...)
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
		if e, err = st.Find(e.Record.ID); errors.Is(err, vm.ErrNotFound) {
			return 0, errors.New("it has ended and was removed; its exit code is not known")
		} else if err != nil {
			return 0, err
		}
	}
	if e.Record.ExitCode == nil {
		return exitFailed, nil
	}
	return *e.Record.ExitCode, nil
}
