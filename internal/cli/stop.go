package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
)

// defaultStopSeconds is Docker's.
const defaultStopSeconds = 10

type stopOptions struct {
	vmsOptions
	seconds int
}

func newStopCommand(a *app, run func(context.Context, *app, *stopOptions) error) *cobra.Command {
	o := new(stopOptions)
	cmd := newVMsCommand(a, &cobra.Command{
		Use:   "stop VM...",
		Short: "Stop VMs",
		Long: `Send the container its stop signal (the image's, or SIGTERM), give it time to
end, and kill it if it does not. The VM ends with it, and is not restarted. To
stop a VM that has ended is no error.`,
		Example: `  fcvm stop web
  fcvm stop --time 0 $(fcvm ls -q)`,
	}, &o.vmsOptions, liveVM, func(ctx context.Context) error { return run(ctx, a, o) })
	cmd.Flags().IntVarP(&o.seconds, "time", "t", defaultStopSeconds, "`SECONDS` until it is killed; -1 for never")
	return cmd
}

func runStop(ctx context.Context, a *app, o *stopOptions) error {
	timeout := time.Duration(o.seconds) * time.Second
	return a.eachEntry(ctx, o.vms, func(st *store.Store, e store.Entry) error {
		return askEnd(ctx, st, e, "stop", func(c *control.Client) error { return c.Stop(ctx, timeout) })
	})
}
