package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newStatsCommand(a *app, run func(context.Context, *app, *topOptions) error) *cobra.Command {
	o := new(topOptions)
	cmd := &cobra.Command{
		Use:     "stats [flags] [VM...]",
		Short:   "Watch what VMs use",
		GroupID: groupVMs,
		Long: `Show what VMs use, again and again: of all that run, as fcvm top does, or of
those that are named, until all of them have ended. fcvm top --help says what the
columns and the keys are.`,
		Example: `  fcvm stats
  fcvm stats --no-stream web db
  fcvm stats --no-stream --format json web`,
		ValidArgsFunction: completeVMs(a, liveVM),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.named = args
			return run(ctx, a, o)
		}),
	}
	o.register(cmd)
	return cmd
}
