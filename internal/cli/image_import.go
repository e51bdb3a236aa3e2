package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
)

type imageImportOptions struct {
	source string
	opts   image.ImportOptions
	quiet  bool
	maxMiB int
}

func newImageImportCommand(a *app, run func(context.Context, *app, *imageImportOptions) error) *cobra.Command {
	o := new(imageImportOptions)
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|DIRECTORY|- [NAME]",
		Short: "Make an image of a root file system",
		Long: `Make an image of a root file system: a tar archive, which may be compressed with
gzip, zstd, xz or bzip2, a directory, or an archive from stdin (-). The image's id
is printed. An archive that holds an image already is loaded.

A directory is taken with its owners as they are here; to keep those of a root that
belongs to other users, import it as root, or make a tar of it as root.`,
		Example: `  fcvm image import rootfs.tar.zst myroot:1
  fcvm image import --change 'CMD ["/bin/sh"]' --change 'ENV LANG=C.UTF-8' ./root myroot
  docker export box | fcvm image import - box`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return &usageError{command: cmd.CommandPath(), err: errors.New("a file, a directory or - is to be given, and perhaps a name")}
			}
			return nil
		},
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.source = args[0]
			if len(args) > 1 {
				o.opts.Name = args[1]
			}
			return run(ctx, a, o)
		}),
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.opts.Changes, "change", "c", nil, "apply an `INSTRUCTION`: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR")
	f.StringVarP(&o.opts.Message, "message", "m", "", "`TEXT` for the image's history")
	f.StringVar(&o.opts.Platform, "platform", "", "what the root is for: `OS/ARCH` (default: this machine)")
	addQuiet(cmd, &o.quiet)
	addMaxSize(cmd, &o.maxMiB)
	return cmd
}

func runImageImport(ctx context.Context, a *app, o *imageImportOptions) error {
	images, err := a.openImages()
	if err != nil {
		return err
	}
	err = a.withProgress(o.quiet, func(rep progress.Reporter) error {
		o.opts.Progress = rep
		l, err := a.importImage(ctx, images, o)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.sys.Stdout, l.Digest)
		return err
	})
	return errors.Join(err, a.shrinkImages(ctx, o.maxMiB))
}

func (a *app) importImage(ctx context.Context, images *image.Store, o *imageImportOptions) (image.Loaded, error) {
	if st, err := os.Stat(o.source); err == nil && st.IsDir() {
		return images.ImportDir(ctx, o.source, o.opts)
	}
	in, done, err := a.input(o.source)
	if err != nil {
		return image.Loaded{}, err
	}
	defer done()
	return images.Import(ctx, in, o.source, o.opts)
}
