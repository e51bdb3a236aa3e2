package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
)

type imageHistoryOptions struct {
	image    string
	platform string
	noTrunc  bool
	quiet    bool
	format   string
}

func newImageHistoryCommand(a *app, run func(context.Context, *app, *imageHistoryOptions) error) *cobra.Command {
	o := new(imageHistoryOptions)
	cmd := &cobra.Command{
		Use:   "history [flags] IMAGE",
		Short: "Show how an image was made",
		Long: `Show the steps that an image was made in, the last one first, as the image tells
them. SIZE is that of the layer that a step made, as it is kept, perhaps compressed;
it is missing where layers are not kept, as those of an archive.`,
		Example: `  fcvm image history nginx
  fcvm image history --no-trunc --format '{{.CreatedBy}}' nginx`,
		Args:              one("image"),
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.image = args[0]
			return run(ctx, a, o)
		}),
	}
	addPlatform(cmd, &o.platform)
	cmd.Flags().BoolVar(&o.noTrunc, "no-trunc", false, "print everything in full")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print the layers' digests only")
	addFormat(cmd, &o.format, "Layer", "Created", "CreatedBy", "Size", "Comment", "Author")
	cmd.MarkFlagsMutuallyExclusive("quiet", "format")
	return cmd
}

// historyItem is one step as `fcvm image history` shows it.
type historyItem struct {
	Layer     string     `json:"layer,omitempty"` // digest of its content; empty: the step made none
	Created   *time.Time `json:"created,omitempty"`
	CreatedBy string     `json:"created_by"`
	Size      *int64     `json:"size,omitempty"` // bytes; nil: not known
	Comment   string     `json:"comment,omitempty"`
	Author    string     `json:"author,omitempty"`
}

func runImageHistory(ctx context.Context, a *app, o *imageHistoryOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	var items []historyItem
	err = a.eachImage(ctx, []string{o.image}, o.platform, func(images *image.Store, _ string, e image.Entry) error {
		d, err := images.Details(ctx, e)
		items = newHistory(d, e.Layers)
		return err
	})
	switch {
	case err != nil:
		return err
	case o.quiet:
		for _, i := range items {
			if i.Layer != "" {
				_, _ = fmt.Fprintln(a.sys.Stdout, i.Layer)
			}
		}
		return nil
	case f.plain():
		return printHistory(a.sys.Stdout, items, o.noTrunc, time.Now())
	}
	return writeItems(a.sys.Stdout, f, items)
}

func newHistory(d image.Details, layers []image.Layer) []historyItem {
	steps := d.History
	if len(steps) == 0 { // an image need not tell: then there are its layers
		for i := range d.DiffIDs {
			steps = append(steps, image.Step{Layer: i})
		}
	}
	var items []historyItem
	for _, s := range slices.Backward(steps) {
		i := historyItem{CreatedBy: s.CreatedBy, Comment: s.Comment, Author: s.Author}
		if s.Created.Unix() > 0 {
			i.Created = &s.Created
		}
		var size int64
		switch {
		case s.Layer < 0:
			i.Size = &size
		case s.Layer < len(layers):
			size = layers[s.Layer].Size
			i.Size = &size
		}
		if s.Layer >= 0 {
			i.Layer = d.DiffIDs[s.Layer]
		}
		items = append(items, i)
	}
	return items
}

func printHistory(w io.Writer, items []historyItem, full bool, now time.Time) error {
	cut, id := shorten, shortID
	if full {
		cut, id = printable, func(s string) string { return s }
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "LAYER\tCREATED\tCREATED BY\tSIZE\tCOMMENT")
	for _, i := range items {
		layer, created, size := "-", "-", "-"
		if i.Layer != "" {
			layer = id(i.Layer)
		}
		if i.Created != nil {
			created = age(*i.Created, now) + " ago"
		}
		if i.Size != nil {
			size = progress.FormatBytes(*i.Size)
		}
		_, _ = fmt.Fprintln(t, strings.Join([]string{layer, created, cut(i.CreatedBy), size, cut(i.Comment)}, "\t"))
	}
	return t.Flush()
}
