package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/term"
	"github.com/fcvm/fcvm/internal/vm"
)

type imageLoadOptions struct {
	input    string
	platform string
	quiet    bool
	maxMiB   int
}

func newImageLoadCommand(a *app, run func(context.Context, *app, *imageLoadOptions) error) *cobra.Command {
	o := new(imageLoadOptions)
	cmd := &cobra.Command{
		Use:   "load [flags]",
		Short: "Take images from an archive",
		Long: `Take all images of an archive that docker save, podman save or fcvm image save made,
or of an OCI archive or OCI layout, from stdin or a file. It may be compressed with
gzip, zstd, xz or bzip2. Images have the names that they have in the archive.`,
		Example: `  fcvm image load -i app.tar
  docker save app | fcvm image load`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().StringVarP(&o.input, "input", "i", "", "read from `FILE`, or an OCI layout's directory, instead of stdin")
	addPlatform(cmd, &o.platform)
	addQuiet(cmd, &o.quiet)
	addMaxSize(cmd, &o.maxMiB)
	return cmd
}

func runImageLoad(ctx context.Context, a *app, o *imageLoadOptions) error {
	images, err := a.openImages()
	if err != nil {
		return err
	}
	var list []image.Loaded
	err = a.withProgress(o.quiet, func(rep progress.Reporter) error {
		lo := image.LoadOptions{Platform: o.platform, Progress: rep}
		if st, err := os.Stat(o.input); err == nil && st.IsDir() {
			list, err = images.LoadDir(ctx, o.input, lo)
			return err
		}
		in, done, err := a.input(o.input)
		if err != nil {
			return err
		}
		defer done()
		list, err = images.Load(ctx, in, lo)
		return err
	})
	for _, l := range list {
		for _, n := range l.Names {
			_, _ = fmt.Fprintf(a.sys.Stdout, "Loaded image: %s\n", n)
		}
		if len(l.Names) == 0 {
			_, _ = fmt.Fprintf(a.sys.Stdout, "Loaded image ID: %s\n", l.Digest)
		}
	}
	return errors.Join(err, a.shrinkImages(ctx, o.maxMiB))
}

// input opens a file, or stdin if there is no name, or "-".
func (a *app) input(name string) (f *os.File, done func(), err error) {
	if name != "" && name != "-" {
		if f, err = os.Open(name); err != nil {
			return nil, nil, err
		}
		return f, func() { _ = f.Close() }, nil
	}
	if _, ok := term.Of(a.sys.Stdin); ok {
		return nil, nil, fmt.Errorf("%w: stdin is a terminal: give an archive with < FILE or through a pipe", vm.ErrInvalid)
	}
	if f, ok := a.sys.Stdin.(*os.File); ok {
		return f, func() {}, nil
	}
	// Not a file of the system's: through a pipe it is one.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	go func() {
		_, _ = io.Copy(w, a.sys.Stdin)
		_ = w.Close()
	}()
	return r, func() { _ = r.Close() }, nil
}

type imageSaveOptions struct {
	images   []string
	output   string
	format   image.Format
	platform string
	quiet    bool
}

func newImageSaveCommand(a *app, run func(context.Context, *app, *imageSaveOptions) error) *cobra.Command {
	o := new(imageSaveOptions)
	cmd := &cobra.Command{
		Use:   "save [flags] IMAGE...",
		Short: "Write images to an archive",
		Long: `Write images that are here to an archive, with their names. docker-archive is for
docker load and podman load; oci-archive keeps layers compressed as they came, and
is for podman load, skopeo and buildah. fcvm image load takes both.`,
		Example: `  fcvm image save -o app.tar app
  fcvm image save app | docker load
  fcvm image save --format oci-archive -o app.oci.tar app`,
		Args:              oneOrMore("image"),
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.images = args
			return run(ctx, a, o)
		}),
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "write to `FILE` instead of stdout")
	addChoice(cmd, newChoice(&o.format, image.FormatDocker, image.FormatOCI), "format", "form of the archive")
	addPlatform(cmd, &o.platform)
	addQuiet(cmd, &o.quiet)
	return cmd
}

func runImageSave(ctx context.Context, a *app, o *imageSaveOptions) error {
	var (
		images  *image.Store
		savings []image.Saving
	)
	err := a.eachImage(ctx, o.images, o.platform, func(s *image.Store, ref string, e image.Entry) error {
		images = s
		add(&savings, e, s.Named(e, ref))
		return nil
	})
	if err != nil {
		return err
	}
	if o.output == "" {
		if _, ok := term.Of(a.sys.Stdout); ok {
			return fmt.Errorf("%w: stdout is a terminal: give a file with --output, or a pipe", vm.ErrInvalid)
		}
		return a.withProgress(o.quiet, func(rep progress.Reporter) error {
			return images.Save(ctx, a.sys.Stdout, savings, o.format, rep)
		})
	}
	return writeOutput(o.output, 0o644, func(w io.Writer) error {
		return a.withProgress(o.quiet, func(rep progress.Reporter) error { return images.Save(ctx, w, savings, o.format, rep) })
	})
}

// add appends an image, or a name to one that is there already.
func add(list *[]image.Saving, e image.Entry, name string) {
	at := -1
	for i := range *list {
		if (*list)[i].Digest == e.Digest {
			at = i
		}
	}
	if at < 0 {
		at = len(*list)
		*list = append(*list, image.Saving{Digest: e.Digest})
	}
	if name != "" {
		(*list)[at].Names = append((*list)[at].Names, name)
	}
}
