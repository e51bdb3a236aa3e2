package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
)

type setupKernelOptions struct {
	kernel setup.KernelOptions
	quiet  bool
}

func newSetupKernelCommand(a *app, run func(context.Context, *app, *setupKernelOptions) error) *cobra.Command {
	o := new(setupKernelOptions)
	cmd := &cobra.Command{
		Use:   "kernel [flags]",
		Short: "Install the kernel that VMs boot",
		Long: `Install a kernel and the modules that a guest needs. It comes from the
distribution's package (through apt, as this host has it configured), from the
kernel that this host runs, from a file or from a URL. A bzImage of any
compression is unpacked; on arm64 it is an Image.`,
		Example: `  fcvm setup kernel
  fcvm setup kernel --from host
  fcvm setup kernel --from vmlinuz-6.12 --modules /lib/modules/6.12 --force
  fcvm setup kernel --from https://example.org/vmlinux --sha256 9f86d0…`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.kernel.From, "from", "", "`SOURCE`: package (the default), host, a FILE or a URL")
	f.StringVar(&o.kernel.SHA256, "sha256", "", "checksum of the file or of what the URL gives, in `HEX`; required with a URL")
	f.StringVar(&o.kernel.Modules, "modules", "", "`DIR` with the modules of a file or URL; without it, all must be built in")
	f.StringVar(&o.kernel.Package, "package", "", "`NAME` of the distribution's package (default: its kernel for clouds)")
	f.BoolVar(&o.kernel.Force, "force", false, "install it again")
	addQuiet(cmd, &o.quiet)
	complete(cmd, "from", cobra.FixedCompletions([]string{"package", "host"}, cobra.ShellCompDirectiveDefault))
	return cmd
}

func runSetupKernel(ctx context.Context, a *app, o *setupKernelOptions) error {
	return a.install(o.quiet, func(s *setup.Setup, rep progress.Reporter) error { return s.Kernel(ctx, o.kernel, rep) })
}
