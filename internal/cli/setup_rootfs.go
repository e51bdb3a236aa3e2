package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/setup"
)

type setupRootfsOptions struct {
	rootfs setup.RootfsOptions
	quiet  bool
}

func newSetupRootfsCommand(a *app, run func(context.Context, *app, *setupRootfsOptions) error) *cobra.Command {
	o := new(setupRootfsOptions)
	cmd := &cobra.Command{
		Use:   "rootfs [flags]",
		Short: "Build the guest root that VMs share",
		Long: `Build the read-only root of the guests: Debian or Ubuntu with Podman, made by
mmdebstrap or debootstrap from the archives that this host's apt uses; or any
container image that has Podman in it. Root is not needed.`,
		Example: `  fcvm setup rootfs
  fcvm setup rootfs --suite trixie --include strace,tcpdump
  fcvm setup rootfs --from-image oci-archive:guest.tar`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.rootfs.Suite, "suite", "", "`RELEASE` to build, as bookworm (default: this host's, where it will do)")
	f.StringSliceVar(&o.rootfs.Include, "include", nil, "`PACKAGES` to add, separated by commas")
	f.StringVar(&o.rootfs.Mirror, "mirror", "", "`URI` of the archive (default: those of this host's apt)")
	f.StringVar(&o.rootfs.FromImage, "from-image", "", "take this container `IMAGE` instead of packages")
	f.BoolVar(&o.rootfs.Force, "force", false, "build it again")
	addQuiet(cmd, &o.quiet)
	for _, other := range []string{"suite", "include", "mirror"} {
		cmd.MarkFlagsMutuallyExclusive("from-image", other)
	}
	return cmd
}

func runSetupRootfs(ctx context.Context, a *app, o *setupRootfsOptions) error {
	return a.install(o.quiet, func(s *setup.Setup, rep progress.Reporter) error {
		opts, release := o.rootfs, func() {}
		defer func() { release() }() // the layers are read until Rootfs returns
		opts.Layers = func(ctx context.Context, ref string) (layers []rootfs.Layer, err error) {
			images, err := a.openImages()
			if err != nil {
				return nil, err
			}
			var done func()
			if layers, done, err = images.Layers(ctx, ref, image.EnsureOptions{Progress: rep}); err == nil {
				release = done
			}
			return layers, err
		}
		return s.Rootfs(ctx, opts, rep)
	})
}
