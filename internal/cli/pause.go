package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

func newPauseCommand(a *app, run func(context.Context, *app, *vmsOptions) error) *cobra.Command {
	o := new(vmsOptions)
	return newVMsCommand(a, &cobra.Command{
		Use:     "pause VM...",
		Short:   "Stop the virtual CPUs of VMs",
		Long:    `Stop the virtual CPUs of VMs. Nothing in them runs until they are resumed.`,
		Example: `  fcvm pause web && fcvm resume web`,
	}, o, withStatus(vm.StatusRunning), func(ctx context.Context) error { return run(ctx, a, o) })
}

func newResumeCommand(a *app, run func(context.Context, *app, *vmsOptions) error) *cobra.Command {
	o := new(vmsOptions)
	return newVMsCommand(a, &cobra.Command{
		Use:     "resume VM...",
		Aliases: []string{"unpause"},
		Short:   "Let paused VMs go on",
		Example: `  fcvm resume web`,
	}, o, withStatus(vm.StatusPaused), func(ctx context.Context) error { return run(ctx, a, o) })
}

func withStatus(s vm.Status) func(store.Entry) bool {
	return func(e store.Entry) bool { return e.Alive && e.Record.Status == s }
}

func runPause(ctx context.Context, a *app, o *vmsOptions) error {
	return a.eachEntry(ctx, o.vms, func(st *store.Store, e store.Entry) error {
		return ask(st, e, "pause", func(c *control.Client) error { return c.Pause(ctx) })
	})
}

func runResume(ctx context.Context, a *app, o *vmsOptions) error {
	return a.eachEntry(ctx, o.vms, func(st *store.Store, e store.Entry) error {
		return ask(st, e, "resume", func(c *control.Client) error { return c.Resume(ctx) })
	})
}
