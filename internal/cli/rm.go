package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type rmOptions struct {
	vmsOptions
	force bool
}

func newRmCommand(a *app, run func(context.Context, *app, *rmOptions) error) *cobra.Command {
	o := new(rmOptions)
	cmd := newVMsCommand(a, &cobra.Command{
		Use:   "rm VM...",
		Short: "Remove VMs that have ended",
		Long: `Remove VMs that have ended and were kept (-d, --restart, --rm=false), with their
records, logs and disks, on which their anonymous volumes are. VM is an id, the
unique beginning of one, or a name.`,
		Example: `  fcvm rm box
  fcvm rm -f $(fcvm ls -aq)`,
	}, &o.vmsOptions, func(e store.Entry) bool { return o.force || endedVM(e) }, func(ctx context.Context) error { return run(ctx, a, o) })
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "kill those that run; one that is not there is no error")
	cmd.Flags().BoolP("volumes", "v", false, "remove anonymous volumes, too; they go with their VM in any case")
	return cmd
}

// runRm removes all that it can.
func runRm(ctx context.Context, a *app, o *rmOptions) error {
	return a.eachVM(ctx, o.vms, func(st *store.Store, ref string) error {
		err := o.remove(ctx, st, ref)
		if o.force && errors.Is(err, vm.ErrNotFound) {
			return errNothing
		}
		return err
	})
}

func (o *rmOptions) remove(ctx context.Context, st *store.Store, ref string) error {
	e, err := st.Find(ref)
	if err != nil {
		return err
	}
	if o.force {
		if err := askEnd(ctx, st, e, "kill", func(c *control.Client) error { return c.Kill(ctx, int(syscall.SIGKILL)) }); err != nil {
			return err
		}
	}
	err = st.Remove(e.Record.ID)
	if errors.Is(err, vm.ErrRunning) {
		return fmt.Errorf("remove %s: %w; stop it first, or remove it with: fcvm rm -f %s", ref, vm.ErrRunning, ref)
	}
	return err
}
