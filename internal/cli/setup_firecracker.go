package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
)

type setupFirecrackerOptions struct {
	firecracker setup.FirecrackerOptions
	quiet       bool
}

func newSetupFirecrackerCommand(a *app, run func(context.Context, *app, *setupFirecrackerOptions) error) *cobra.Command {
	o := new(setupFirecrackerOptions)
	cmd := &cobra.Command{
		Use:   "firecracker [flags]",
		Short: "Install the Firecracker program",
		Long: `Install Firecracker: the release that this fcvm is made for, downloaded from
its project's page and checked against its checksum, or a file. It needs KVM;
without it VMs are run by QEMU.`,
		Example: `  fcvm setup firecracker
  fcvm setup firecracker --from-file ./firecracker-v1.13.1-x86_64`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.firecracker.FromFile, "from-file", "", "install this `FILE`")
	f.StringVar(&o.firecracker.Version, "version", "", "download this `RELEASE`, as v1.13.1")
	f.BoolVar(&o.firecracker.Force, "force", false, "install it again")
	addQuiet(cmd, &o.quiet)
	cmd.MarkFlagsMutuallyExclusive("from-file", "version")
	return cmd
}

func runSetupFirecracker(ctx context.Context, a *app, o *setupFirecrackerOptions) error {
	return a.install(o.quiet, func(s *setup.Setup, rep progress.Reporter) error { return s.Firecracker(ctx, o.firecracker, rep) })
}
