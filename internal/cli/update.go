package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type updateOptions struct {
	vmsOptions
	balloon    int // MiB
	hasBalloon bool
}

func newUpdateCommand(a *app, run func(context.Context, *app, *updateOptions) error) *cobra.Command {
	o := new(updateOptions)
	cmd := newVMsCommand(a, &cobra.Command{
		Use:   "update VM...",
		Short: "Change VMs while they run",
		Long: `Change VMs while they run.

--balloon asks the guest to give up so much of its memory, which the host then
has for others; 0 gives all of it back. The guest gives up what it does not
use, in its own time, and takes memory back by itself before it runs out. It
keeps 128 MiB at least.`,
		Example: `  fcvm update --balloon 256m web
  fcvm update --balloon 0 web`,
	}, &o.vmsOptions, withStatus(vm.StatusRunning), nil)
	cmd.RunE = interruptible(func(ctx context.Context, args []string) error {
		o.vms, o.hasBalloon = args, cmd.Flags().Changed("balloon")
		if !o.hasBalloon {
			return &usageError{command: cmd.CommandPath(), err: errors.New("nothing to update: give --balloon")}
		}
		return run(ctx, a, o)
	})
	cmd.Flags().Var(memory{&o.balloon}, "balloon", "take `SIZE` of its memory back from the guest: a number of MiB, or 512m, 2g; 0 for none")
	return cmd
}

func runUpdate(ctx context.Context, a *app, o *updateOptions) error {
	u := control.UpdateRequest{BalloonMiB: &o.balloon}
	return a.eachEntry(ctx, o.vms, func(st *store.Store, e store.Entry) error {
		return ask(st, e, "update", func(c *control.Client) error { return c.Update(ctx, u) })
	})
}
