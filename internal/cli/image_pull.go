package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
)

type imagePullOptions struct {
	images   []string
	platform string
	access   image.Access
	quiet    bool
	maxMiB   int
}

func newImagePullCommand(a *app, run func(context.Context, *app, *imagePullOptions) error) *cobra.Command {
	o := new(imagePullOptions)
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE...",
		Short: "Fetch images, and make their disks",
		Long: `Fetch images from their registries, and make the disks that VMs start from. A name
that is here already is looked up again: its tag may have moved. Ids are printed.

Several layers come at once, each is checked against its digest, and layers that
are here are not fetched again. A connection that breaks is tried again, and what
came before an interrupt is not fetched twice. Mirrors, short names and registries
without TLS are as in Podman's registries.conf; credentials as docker login and
podman login leave them.`,
		Example: `  fcvm image pull debian:12 docker.io/library/nginx
  fcvm image pull --platform linux/arm64 alpine
  fcvm image pull --tls-verify=false registry.lan:5000/app`,
		Args:              oneOrMore("image"),
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.images = args
			return run(ctx, a, o)
		}),
	}
	addPlatform(cmd, &o.platform)
	addAccess(cmd, &o.access)
	addQuiet(cmd, &o.quiet)
	addMaxSize(cmd, &o.maxMiB)
	return cmd
}

func runImagePull(ctx context.Context, a *app, o *imagePullOptions) error {
	images, err := a.openImages()
	if err != nil {
		return err
	}
	var failed []error
	for _, ref := range o.images {
		if ctx.Err() != nil {
			break
		}
		err := a.withProgress(o.quiet, func(rep progress.Reporter) error {
			img, err := images.Ensure(ctx, ref, image.EnsureOptions{
				Pull: image.PullAlways, Platform: o.platform, Access: o.access, Progress: rep,
			})
			if err != nil {
				return err
			}
			defer img.Release()
			_, err = fmt.Fprintln(a.sys.Stdout, img.Digest)
			return err
		})
		failed = append(failed, err)
	}
	return errors.Join(append(failed, a.shrinkImages(ctx, o.maxMiB))...)
}
