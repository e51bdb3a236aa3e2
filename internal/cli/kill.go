package cli

import (
	"context"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
)

type killOptions struct {
	vmsOptions
	signal string
}

func newKillCommand(a *app, run func(context.Context, *app, *killOptions) error) *cobra.Command {
	o := new(killOptions)
	cmd := newVMsCommand(a, &cobra.Command{
		Use:   "kill VM...",
		Short: "Send a signal to containers, SIGKILL if no other is given",
		Long: `Send a signal to the container's first process. SIGKILL ends the VM with it,
and it is not restarted; to kill a VM that has ended is no error.`,
		Example: `  fcvm kill web
  fcvm kill --signal HUP web`,
	}, &o.vmsOptions, liveVM, func(ctx context.Context) error { return run(ctx, a, o) })
	cmd.Flags().StringVarP(&o.signal, "signal", "s", "KILL", "`SIGNAL` by name or number")
	complete(cmd, "signal", cobra.FixedCompletions(
		[]string{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "WINCH"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runKill(ctx context.Context, a *app, o *killOptions) error {
	sig, err := supervisor.ParseSignal(o.signal)
	if err != nil {
		return err
	}
	return a.eachEntry(ctx, o.vms, func(st *store.Store, e store.Entry) error {
		send := func(c *control.Client) error { return c.Kill(ctx, sig) }
		if sig == int(syscall.SIGKILL) {
			return askEnd(ctx, st, e, "kill", send)
		}
		return ask(st, e, "kill", send)
	})
}
