package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/inventory"
)

type imageRmOptions struct {
	images   []string
	platform string
	force    bool
}

func newImageRmCommand(a *app, run func(context.Context, *app, *imageRmOptions) error) *cobra.Command {
	o := new(imageRmOptions)
	cmd := &cobra.Command{
		Use:     "rm [flags] IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images, or names of images",
		Long: `Remove images with their disks, and layers that no other image has. Of an image
with several names only the one that is given goes; the last takes the image with
it. An image that a VM uses stays, whether the VM runs or has ended and was kept, and
so does one that a snapshot needs; those that fcvm has taken by itself go with it.`,
		Example: `  fcvm image rm nginx:1.25
  fcvm image rm -f $(fcvm image ls -q --filter dangling=true)`,
		Args:              oneOrMore("image"),
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.images = args
			return run(ctx, a, o)
		}),
	}
	addPlatform(cmd, &o.platform)
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "with an id, remove all of its names; one that is not there is no error")
	return cmd
}

func runImageRm(ctx context.Context, a *app, o *imageRmOptions) error {
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	var failed []error
	for _, ref := range o.images {
		err := a.eachImage(ctx, []string{ref}, o.platform, func(images *image.Store, ref string, e image.Entry) error {
			return a.removeImage(images, inv, ref, e, o.force)
		})
		if o.force && errors.Is(err, image.ErrNotFound) {
			continue
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func (a *app) removeImage(images *image.Store, inv *inventory.Inventory, ref string, e image.Entry, force bool) error {
	named := images.Named(e, ref)
	switch {
	case named != "" && len(e.Names) > 1:
		if err := images.Untag(e, named); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.sys.Stdout, "Untagged: %s\n", named)
		return err
	case named == "" && len(e.Names) > 1 && !force:
		return fmt.Errorf("remove image %s: it has several names, %s: say which, or remove all with --force", shortID(e.Digest), imageNames(e))
	}
	removed, users, err := inv.RemoveImage(e)
	switch {
	case err != nil:
		return err
	case len(users) > 0:
		return fmt.Errorf("remove image %s: it is used by %s", ref, strings.Join(users, ", "))
	case !removed:
		return fmt.Errorf("remove image %s: it is in use just now", ref)
	}
	for _, n := range e.Names {
		_, _ = fmt.Fprintf(a.sys.Stdout, "Untagged: %s\n", n.Name)
	}
	_, err = fmt.Fprintf(a.sys.Stdout, "Deleted: %s\n", e.Digest)
	return err
}

func imageNames(e image.Entry) string {
	var names []string
	for _, n := range e.Names {
		names = append(names, n.Name)
	}
	return strings.Join(names, ", ")
}

type imageTagOptions struct {
	source   string
	names    []string
	platform string
}

func newImageTagCommand(a *app, run func(context.Context, *app, *imageTagOptions) error) *cobra.Command {
	o := new(imageTagOptions)
	cmd := &cobra.Command{
		Use:   "tag [flags] IMAGE NAME...",
		Short: "Give an image one more name",
		Long: `Give an image that is here one more name, NAME[:TAG] or HOST/NAME[:TAG]. Another
image that has the name loses it.`,
		Example: `  fcvm image tag nginx:1.27 web:production
  fcvm image tag oci-archive:app.tar app`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if len(args) < 2 {
				return &usageError{command: "fcvm image tag", err: errors.New("an image and its new name are to be given")}
			}
			o.source, o.names = args[0], args[1:]
			return run(ctx, a, o)
		}),
	}
	addPlatform(cmd, &o.platform)
	return cmd
}

func runImageTag(ctx context.Context, a *app, o *imageTagOptions) error {
	return a.eachImage(ctx, []string{o.source}, o.platform, func(images *image.Store, _ string, e image.Entry) error {
		for _, n := range o.names {
			if err := images.Tag(e, n); err != nil {
				return err
			}
		}
		return nil
	})
}

type imagePruneOptions struct {
	all     bool
	force   bool
	dryRun  bool
	filters []string
	maxMiB  int
}

func newImagePruneCommand(a *app, run func(context.Context, *app, *imagePruneOptions) error) *cobra.Command {
	o := new(imagePruneOptions)
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove images that are not used",
		Long: `Remove, after asking, images that have no name any more, and layers that no image
has; with --all every image that no VM uses. With --max-size images go, the least
recently used first, until the rest takes no more than that.

What a VM uses stays, whether it runs or has ended and was kept, and what a snapshot
needs; those that fcvm has taken by itself go with their image.

A filter is KEY=VALUE with one of the keys until (24h, or a time: what came before)
and label (KEY or KEY=VALUE).`,
		Example: `  fcvm image prune
  fcvm image prune --all --filter until=240h --force
  fcvm image prune --max-size 20g`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "remove all images that no VM uses")
	f.BoolVarP(&o.force, "force", "f", false, "do not ask")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what would be removed")
	f.StringArrayVar(&o.filters, "filter", nil, "remove only those that fit `KEY=VALUE`")
	addMaxSize(cmd, &o.maxMiB)
	for _, other := range []string{"all", "filter", "dry-run"} {
		cmd.MarkFlagsMutuallyExclusive("max-size", other)
	}
	return cmd
}

func runImagePrune(ctx context.Context, a *app, o *imagePruneOptions) error {
	if o.maxMiB > 0 {
		return a.shrinkImages(ctx, o.maxMiB)
	}
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	filters, err := parseImageFilters(inv.Images, o.filters)
	if err != nil {
		return err
	}
	list, err := inv.Images.List()
	if err != nil {
		return err
	}
	items, listErr := inv.List()
	unused := slices.DeleteFunc(inventory.UnusedImages(items, o.all), func(i inventory.Item) bool {
		at := slices.IndexFunc(list, func(e image.Entry) bool { return e.Digest == i.ID })
		return len(filters) > 0 && (at < 0 || !fits(filters, list[at]))
	})
	return errors.Join(listErr, a.removeUnused(ctx, unused, o.force, o.dryRun))
}
