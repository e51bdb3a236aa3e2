package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

type imageBuildDiskOptions struct {
	images   []string
	pull     image.Pull
	platform string
	access   image.Access
	output   string
	quiet    bool
	maxMiB   int
}

func newImageBuildDiskCommand(a *app, run func(context.Context, *app, *imageBuildDiskOptions) error) *cobra.Command {
	o := new(imageBuildDiskOptions)
	cmd := &cobra.Command{
		Use:   "build-disk [flags] IMAGE...",
		Short: "Make images' disks ahead of the first run",
		Long: `Make the read-only disks that VMs of images start from, so that the first run finds
them, and print where they are. What is missing is fetched. The disk is an ext4 file
system with the image's tree below /rootfs; with --output a copy of it is written,
which is yours.`,
		Example: `  fcvm image build-disk oci-archive:app.tar
  fcvm image build-disk --output app.ext4 debian:12`,
		Args:              oneOrMore("image"),
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.images = args
			return run(ctx, a, o)
		}),
	}
	addChoice(cmd, newChoice(&o.pull, image.PullMissing, image.PullAlways, image.PullNever), "pull", "when to ask the registry for the image")
	addPlatform(cmd, &o.platform)
	addAccess(cmd, &o.access)
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "write a copy of the disk to `FILE`, which must not be there")
	addQuiet(cmd, &o.quiet)
	addMaxSize(cmd, &o.maxMiB)
	return cmd
}

func runImageBuildDisk(ctx context.Context, a *app, o *imageBuildDiskOptions) error {
	if o.output != "" && len(o.images) > 1 {
		return &usageError{command: "fcvm image build-disk", err: errors.New("--output is for one image")}
	}
	images, err := a.openImages()
	if err != nil {
		return err
	}
	var failed []error
	for _, ref := range o.images {
		if ctx.Err() != nil {
			break
		}
		err := a.withProgress(o.quiet, func(rep progress.Reporter) error { return a.buildDisk(ctx, images, ref, o, rep) })
		failed = append(failed, err)
	}
	return errors.Join(append(failed, a.shrinkImages(ctx, o.maxMiB))...)
}

func (a *app) buildDisk(ctx context.Context, images *image.Store, ref string, o *imageBuildDiskOptions, rep progress.Reporter) error {
	img, err := images.Ensure(ctx, ref, image.EnsureOptions{Pull: o.pull, Platform: o.platform, Access: o.access, Progress: rep})
	if err != nil {
		return err
	}
	defer img.Release()
	path := img.Disk
	if o.output != "" {
		path = o.output
		if err := rootfs.CopySparse(ctx, path, img.Disk); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(a.sys.Stdout, path)
	return err
}

type imageVerifyOptions struct {
	images    []string
	platform  string
	checkOnly bool
	access    image.Access
	quiet     bool
}

func newImageVerifyCommand(a *app, run func(context.Context, *app, *imageVerifyOptions) error) *cobra.Command {
	o := new(imageVerifyOptions)
	cmd := &cobra.Command{
		Use:   "verify [flags] [IMAGE...]",
		Short: "Find damage to images, and make it good",
		Long: `Read images that are here, or all of them, and compare each byte with its checksum:
the configuration, the layers, the disk. Layers that are damaged are fetched again
from the registry that they came from, disks are made again. The exit code is 125
when something stays damaged.`,
		Example: `  fcvm image verify
  fcvm image verify --check-only nginx`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.images = args
			return run(ctx, a, o)
		}),
	}
	addPlatform(cmd, &o.platform)
	cmd.Flags().BoolVar(&o.checkOnly, "check-only", false, "only say what is damaged")
	addAccess(cmd, &o.access)
	addQuiet(cmd, &o.quiet)
	return cmd
}

// errDamaged: an image is not what it was.
var errDamaged = errors.New("damaged")

func runImageVerify(ctx context.Context, a *app, o *imageVerifyOptions) error {
	if len(o.images) == 0 {
		images, err := a.openImages()
		if err != nil {
			return err
		}
		list, err := images.List()
		if err != nil {
			return err
		}
		for _, e := range list {
			o.images = append(o.images, e.Digest)
		}
	}
	return a.withProgress(o.quiet, func(rep progress.Reporter) error {
		return a.eachImage(ctx, o.images, o.platform, func(images *image.Store, _ string, e image.Entry) error {
			return a.verifyImage(ctx, images, e, image.VerifyOptions{CheckOnly: o.checkOnly, Access: o.access, Progress: rep})
		})
	})
}

func (a *app) verifyImage(ctx context.Context, images *image.Store, e image.Entry, o image.VerifyOptions) error {
	name := shortID(e.Digest)
	if len(e.Names) > 0 {
		name += " (" + e.Names[0].Name + ")"
	} else if e.Reference != "" {
		name += " (" + printable(e.Reference) + ")"
	}
	v, err := images.Verify(ctx, e, o)
	damage := strings.Join(v.Damage, ", ")
	switch {
	case err != nil:
		return err
	case damage == "":
		_, err = fmt.Fprintf(a.sys.Stdout, "%s: ok\n", name)
	case v.Healed:
		_, err = fmt.Fprintf(a.sys.Stdout, "%s: damaged and made good: %s\n", name, damage)
	default:
		err = fmt.Errorf("image %s is %w: %s; make it good with: fcvm image verify %s", name, errDamaged, damage, shortID(e.Digest))
	}
	return err
}
