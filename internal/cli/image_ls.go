package cli

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vm"
)

type imageLsOptions struct {
	quiet   bool
	noTrunc bool
	digests bool
	filters []string
	format  string
}

func newImageLsCommand(a *app, run func(context.Context, *app, *imageLsOptions) error) *cobra.Command {
	o := new(imageLsOptions)
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List images",
		Long: `List the images on this host, once for each name. An image of an archive has no
name; where it came from is shown instead. SIZE is what disk and layers take,
layers that several images share included.

A filter is KEY=VALUE with one of the keys reference (a pattern, as *nginx*), label
(KEY or KEY=VALUE), dangling (true: without a name), before and since (an image).`,
		Example: `  fcvm image ls
  fcvm image ls --filter dangling=true -q
  fcvm image ls --format '{{.Repository}}:{{.Tag}} {{.ID}}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "print ids in full")
	f.BoolVar(&o.digests, "digests", false, "show the digests that registries know")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "list only those that fit `KEY=VALUE`")
	addFormat(cmd, &o.format, "Repository", "Tag", "ID", "Digest", "Platform", "Created", "Cached", "Used", "Size", "Disk", "Error")
	cmd.MarkFlagsMutuallyExclusive("quiet", "format")
	return cmd
}

// newImagesCommand is newImageLsCommand by the name that docker and podman have for it.
func newImagesCommand(a *app, run func(context.Context, *app, *imageLsOptions) error) *cobra.Command {
	cmd := newImageLsCommand(a, run)
	cmd.Use, cmd.Aliases, cmd.GroupID = "images [flags]", nil, groupHost
	cmd.Example = strings.ReplaceAll(cmd.Example, "image ls", "images")
	return cmd
}

// imageItem is one name of an image as `fcvm image ls` shows it.
type imageItem struct {
	ID         string     `json:"id"`
	Repository string     `json:"repository"`
	Tag        string     `json:"tag"`
	Digest     string     `json:"digest,omitempty"` // that the registry knows
	Platform   string     `json:"platform"`
	Created    *time.Time `json:"created,omitempty"` // as the image says
	Cached     time.Time  `json:"cached"`            // when it came here
	Used       time.Time  `json:"used"`              // the last time
	Size       int64      `json:"size"`              // bytes
	Disk       string     `json:"disk"`
	Error      string     `json:"error,omitempty"`
}

// noName is what stands where there is no name.
const noName = "<none>"

func newImageItems(ctx context.Context, images *image.Store, e image.Entry) []imageItem {
	i := imageItem{
		ID: e.Digest, Repository: noName, Tag: noName, Platform: e.Platform, Cached: e.Created, Used: e.LastUsed, Disk: e.Disk(),
	}
	if size, err := usage.Disk(e.Dir); err == nil {
		i.Size = size
	}
	for _, l := range e.Layers {
		i.Size += l.Size
	}
	if e.Err != nil {
		i.Error = e.Err.Error()
	} else if d, err := images.Details(ctx, e); err == nil && d.Created.Unix() > 0 {
		i.Created = &d.Created
	}
	if len(e.Names) == 0 {
		if image.IsFile(e.Reference) {
			i.Repository = e.Reference
		}
		return []imageItem{i}
	}
	var out []imageItem
	for _, n := range e.Names {
		i.Tag, i.Digest = noName, n.Manifest
		var tagged bool
		if i.Repository, tagged = repositoryOf(n.Name); tagged {
			i.Tag = n.Name[len(i.Repository)+1:]
		}
		out = append(out, i)
	}
	return out
}

// repositoryOf is a full name without its tag or digest, and whether it has a
// tag.
func repositoryOf(full string) (repo string, tagged bool) {
	if repo, _, ok := strings.Cut(full, "@"); ok {
		return repo, false
	}
	c := strings.LastIndexByte(full, ':')
	if c < strings.LastIndexByte(full, '/') {
		return full, false
	}
	return full[:c], true
}

// imageFilter says whether an image is to be shown.
type imageFilter func(image.Entry) bool

func parseImageFilters(images *image.Store, args []string) ([]imageFilter, error) {
	var out []imageFilter
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || value == "" {
			return nil, fmt.Errorf("%w: --filter %q: it is KEY=VALUE", vm.ErrInvalid, arg)
		}
		f, err := newImageFilter(images, key, value)
		if err != nil {
			return nil, fmt.Errorf("--filter %q: %w", arg, err)
		}
		out = append(out, f)
	}
	return out, nil
}

func newImageFilter(images *image.Store, key, value string) (imageFilter, error) {
	switch key {
	case "reference":
		if _, err := path.Match(value, ""); err != nil {
			return nil, fmt.Errorf("%w: it is no pattern", vm.ErrInvalid)
		}
		return func(e image.Entry) bool {
			return slices.ContainsFunc(e.Names, func(n image.Name) bool { return matchesName(value, n.Name) })
		}, nil
	case "label":
		k, want, valued := strings.Cut(value, "=")
		return func(e image.Entry) bool {
			have, ok := e.Config.Labels[k]
			return ok && (!valued || have == want)
		}, nil
	case "dangling":
		if value != "true" && value != "false" {
			return nil, fmt.Errorf("%w: it is true or false", vm.ErrInvalid)
		}
		return func(e image.Entry) bool {
			return (len(e.Names) == 0 && !image.IsFile(e.Reference)) == (value == "true")
		}, nil
	case "until":
		before, err := parseUntil(value, time.Now())
		return func(e image.Entry) bool { return e.Created.Before(before) }, err
	case "before", "since":
		than, err := images.Find(value, "")
		if err != nil {
			return nil, err
		}
		return func(e image.Entry) bool {
			if key == "before" {
				return e.Created.Before(than.Created)
			}
			return e.Created.After(than.Created)
		}, nil
	}
	return nil, fmt.Errorf("%w: the key is reference, label, dangling, until, before or since", vm.ErrInvalid)
}

// matchesName compares a name, or its last parts, with a pattern.
func matchesName(pattern, name string) bool {
	for rest := name; ; {
		repo, _ := repositoryOf(rest)
		for _, s := range []string{rest, repo} {
			if ok, err := path.Match(pattern, s); err == nil && ok {
				return true
			}
		}
		_, after, ok := strings.Cut(rest, "/")
		if !ok {
			return false
		}
		rest = after
	}
}

// parseUntil reads a time, or how long ago it was.
func parseUntil(value string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(value); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.Parse(layout, value); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: it is a duration, as 24h, or a time, as 2006-01-02T15:04:05Z", vm.ErrInvalid)
}

// fits reports whether an image passes all filters.
func fits(filters []imageFilter, e image.Entry) bool {
	return !slices.ContainsFunc(filters, func(f imageFilter) bool { return !f(e) })
}

func runImageLs(ctx context.Context, a *app, o *imageLsOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	images, err := a.openImages()
	if err != nil {
		return err
	}
	filters, err := parseImageFilters(images, o.filters)
	if err != nil {
		return err
	}
	list, err := images.List()
	if err != nil {
		return err
	}
	var items []imageItem
	for _, e := range slices.Backward(list) { // the newest first, as docker has them
		if fits(filters, e) {
			items = append(items, newImageItems(ctx, images, e)...)
		}
	}
	switch {
	case o.quiet:
		return printImageIDs(a.sys.Stdout, items, o.noTrunc)
	case f.plain():
		return printImages(a.sys.Stdout, items, o, time.Now())
	}
	return writeItems(a.sys.Stdout, f, items)
}

// printImageIDs prints each id once.
func printImageIDs(w io.Writer, items []imageItem, full bool) error {
	seen := map[string]bool{}
	for _, i := range items {
		if seen[i.ID] {
			continue
		}
		seen[i.ID] = true
		id := shortID(i.ID)
		if full {
			id = i.ID
		}
		if _, err := fmt.Fprintln(w, id); err != nil {
			return err
		}
	}
	return nil
}

func printImages(w io.Writer, items []imageItem, o *imageLsOptions, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	digest := func(string) string { return "" }
	if o.digests {
		digest = func(s string) string { return s + "\t" }
	}
	_, _ = fmt.Fprintln(t, "REPOSITORY\tTAG\t"+digest("DIGEST")+"IMAGE ID\tCREATED\tUSED\tSIZE")
	for _, i := range items {
		id, created, size := shortID(i.ID), "-", progress.FormatBytes(i.Size)
		if o.noTrunc {
			id = i.ID
		}
		if i.Created != nil {
			created = age(*i.Created, now) + " ago"
		}
		if i.Error != "" {
			size = "broken"
		}
		known := i.Digest
		if known == "" {
			known = noName
		}
		_, _ = fmt.Fprintln(t, strings.Join([]string{
			imageText(i.Repository), printable(i.Tag), digest(known) + id, created, age(i.Used, now) + " ago", size,
		}, "\t"))
	}
	return t.Flush()
}
