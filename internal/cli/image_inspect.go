package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/usage"
)

type imageInspectOptions struct {
	images   []string
	platform string
	format   string
}

func newImageInspectCommand(a *app, run func(context.Context, *app, *imageInspectOptions) error) *cobra.Command {
	o := new(imageInspectOptions)
	cmd := &cobra.Command{
		Use:   "inspect [flags] IMAGE...",
		Short: "Show all that is known of images, as JSON",
		Long: `Print all that is known of images that are here, as a JSON array: names and the
digests that registries know, platform, configuration (.Config), layers, where the
disk is and what it takes, and which VMs use it (.Users).`,
		Example: `  fcvm image inspect nginx
  fcvm image inspect --format '{{.Config.Cmd}}' nginx
  fcvm image inspect --format '{{.Disk.Path}}' nginx`,
		Args:              oneOrMore("image"),
		ValidArgsFunction: completeImages(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.images = args
			return run(ctx, a, o)
		}),
	}
	addPlatform(cmd, &o.platform)
	addFormat(cmd, &o.format)
	return cmd
}

// imageDetails is all that is known of an image.
type imageDetails struct {
	ID           string        `json:"id"`
	RepoTags     []string      `json:"repo_tags"`
	RepoDigests  []string      `json:"repo_digests"`
	Source       string        `json:"source"` // that it was first made of
	Platform     string        `json:"platform"`
	Created      *time.Time    `json:"created,omitempty"` // as the image says
	Author       string        `json:"author,omitempty"`
	Cached       time.Time     `json:"cached"`
	Used         time.Time     `json:"used"`
	Config       image.Config  `json:"config"`
	ExposedPorts []string      `json:"exposed_ports,omitempty"`
	DiffIDs      []string      `json:"diff_ids"` // digests of the layers' contents
	Layers       []image.Layer `json:"layers"`   // as they are kept; none: the archive has them
	Disk         imageDisk     `json:"disk"`
	Users        []string      `json:"users"` // ids of the VMs that use it
	Error        string        `json:"error,omitempty"`
}

type imageDisk struct {
	Path      string `json:"path"`
	Size      int64  `json:"size"`      // bytes, with holes
	Allocated int64  `json:"allocated"` // without
}

func runImageInspect(ctx context.Context, a *app, o *imageInspectOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	var found []imageDetails
	err = a.eachImage(ctx, o.images, o.platform, func(images *image.Store, _ string, e image.Entry) error {
		d := imageDetails{
			ID: e.Digest, RepoTags: []string{}, RepoDigests: []string{}, Source: e.Reference, Platform: e.Platform,
			Cached: e.Created, Used: e.LastUsed, Config: e.Config, DiffIDs: []string{}, Layers: e.Layers, Users: []string{},
			Disk: imageDisk{Path: e.Disk(), Size: e.DiskSize},
		}
		if d.Layers == nil {
			d.Layers = []image.Layer{}
		}
		for _, n := range e.Names {
			d.addName(n)
		}
		_, d.Disk.Allocated, _ = usage.File(e.Disk())
		users, err := inv.ImageUsers(e)
		d.Users = append(d.Users, users...)
		failed := []error{err, e.Err}
		more, err := images.Details(ctx, e)
		switch {
		case e.Err != nil:
			d.Error = e.Err.Error()
		case err == nil:
			d.Author, d.ExposedPorts, d.DiffIDs = more.Author, more.Ports, more.DiffIDs
			if more.Created.Unix() > 0 {
				d.Created = &more.Created
			}
		case !errors.Is(err, image.ErrNotFound): // else its archive is gone, which had it
			failed = append(failed, err)
		}
		found = append(found, d)
		return errors.Join(failed...)
	})
	if f.plain() {
		f.json = true
	}
	return errors.Join(writeItems(a.sys.Stdout, f, found), err)
}

func (d *imageDetails) addName(n image.Name) {
	repo, tagged := repositoryOf(n.Name)
	if tagged {
		d.RepoTags = append(d.RepoTags, n.Name)
	}
	if n.Manifest != "" {
		d.RepoDigests = append(d.RepoDigests, repo+"@"+n.Manifest)
	}
}
