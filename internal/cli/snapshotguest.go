package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fcvm/fcvm/internal/atomicfile"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/snapshot"
)

// guest is what snapshots need of this host beside the VMM: kernel and guest
// root, which setup knows, and the image. An image travels as its layers, not as
// its disk: they are what its digest says, and a disk is whatever somebody made.
type guest struct {
	setup     *setup.Setup
	images    *image.Store
	snapshots string // directory
	rep       progress.Reporter
	undo      []func()
}

func (a *app) openGuest(rep progress.Reporter) (*guest, error) {
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	s, err := a.openSetup()
	if err != nil {
		return nil, err
	}
	images, err := a.openImages()
	if err != nil {
		return nil, err
	}
	return &guest{setup: s, images: images, snapshots: l.Snapshots(), rep: rep}, nil
}

func (g *guest) close() {
	for _, f := range g.undo {
		f()
	}
	g.undo = nil
}

// pack makes the parts that a snapshot needs. Their files are there until close.
func (g *guest) pack(ctx context.Context, snap *snapshot.Snapshot) ([]snapshot.Part, error) {
	n := &snap.Manifest.Needs
	root, err := g.setup.Root(n.RootID)
	if err != nil {
		return nil, err
	}
	kernel, err := g.spool(func(w io.Writer) error { return g.setup.PackKernel(ctx, n.KernelID, w) })
	if err != nil {
		return nil, err
	}
	img, err := g.images.ByDigest(n.ImageDigest)
	if err != nil {
		return nil, err
	}
	g.undo = append(g.undo, img.Release)
	disk, err := snapshot.Digest(ctx, img.Disk)
	if err != nil {
		return nil, err
	}
	layers, err := g.spool(func(w io.Writer) error {
		return g.images.Save(ctx, w, []image.Saving{{Digest: n.ImageDigest}}, image.FormatOCI, g.rep)
	})
	if err != nil {
		return nil, err
	}
	return []snapshot.Part{
		{Kind: snapshot.PartKernel, ID: n.KernelID, Path: kernel},
		{Kind: snapshot.PartRoot, ID: n.RootID, Path: root},
		{Kind: snapshot.PartImage, ID: n.ImageDigest, Disk: disk, Path: layers},
	}, nil
}

// spool keeps what write gives in a file without a name until close, and returns
// a path that leads to it.
func (g *guest) spool(write func(io.Writer) error) (string, error) {
	f, err := atomicfile.Create(filepath.Join(g.snapshots, "part"), 0o600)
	if err != nil {
		return "", err
	}
	g.undo = append(g.undo, f.Discard)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), write(f)
}

// Lacks implements snapshot.Taker.
func (g *guest) Lacks(p snapshot.Part) bool {
	switch p.Kind {
	case snapshot.PartKernel:
		return !g.setup.HasKernel(p.ID)
	case snapshot.PartRoot:
		return !g.setup.HasRoot(p.ID)
	default:
		return !g.hasImage(p.ID)
	}
}

func (g *guest) hasImage(digest string) bool {
	img, err := g.images.ByDigest(digest)
	if err != nil {
		return false
	}
	img.Release()
	return true
}

// Take implements snapshot.Taker.
func (g *guest) Take(ctx context.Context, parts []snapshot.Part) (release func(), err error) {
	var held []func()
	release = func() {
		for _, f := range held {
			f()
		}
	}
	for _, p := range parts {
		var free func()
		if free, err = g.take(ctx, p); err != nil {
			break
		}
		held = append(held, free)
	}
	if err == nil { // nobody removes what the snapshot needs before it is there
		var free func()
		if free, err = g.setup.Hold(ctx); err == nil {
			held = append(held, free)
		}
	}
	for _, p := range parts {
		if err == nil && g.Lacks(p) {
			err = fmt.Errorf("the %s %s has just been removed by somebody else; import it again", p.Kind, p.ID)
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// take installs one part, if it was not here already, and keeps an image.
func (g *guest) take(ctx context.Context, p snapshot.Part) (release func(), err error) {
	release = func() {}
	switch p.Kind {
	case snapshot.PartImage:
		return g.takeImage(ctx, p)
	case snapshot.PartRoot:
		if p.Path != "" {
			err = g.setup.TakeRoot(ctx, p.ID, p.Path)
		}
	case snapshot.PartKernel:
		if p.Path == "" {
			break
		}
		var f *os.File
		if f, err = os.Open(p.Path); err == nil {
			err = errors.Join(g.setup.UnpackKernel(ctx, p.ID, f), f.Close())
		}
	}
	return release, err
}

// takeImage makes sure that the image's disk is the one that the snapshot's guest
// had: it knows where on that files are.
func (g *guest) takeImage(ctx context.Context, p snapshot.Part) (release func(), err error) {
	var img image.Image
	if p.Path == "" {
		img, err = g.images.ByDigest(p.ID)
	} else {
		var f *os.File
		if f, err = os.Open(p.Path); err == nil {
			img, err = g.images.LoadDigest(ctx, f, p.ID, g.rep)
			_ = f.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	disk, err := snapshot.Digest(ctx, img.Disk)
	if err == nil && p.Disk != "" && disk != p.Disk {
		what := "import it with the version of fcvm that it was taken with"
		if p.Path == "" {
			what = "remove that with: fcvm image rm " + p.ID + ", and import the snapshot again"
		}
		err = fmt.Errorf("%w: the disk that is made here of the image %s is not the one that its guest had; %s", snapshot.ErrMismatch, p.ID, what)
	}
	if err != nil {
		img.Release()
		return nil, err
	}
	return img.Release, nil
}

// missing says what a snapshot needs that is not here, and how to get it.
func (g *guest) missing(m *snapshot.Manifest) (lines []string) {
	n := &m.Needs
	for _, part := range []struct {
		what, id string
		here     bool
	}{{"kernel", n.KernelID, g.setup.HasKernel(n.KernelID)}, {"guest root", n.RootID, g.setup.HasRoot(n.RootID)}} {
		if !part.here {
			lines = append(lines, fmt.Sprintf("%s needs the %s %s, which is not here: bring it along with: fcvm snapshot export --with-guest", m.Title(), part.what, part.id))
		}
	}
	if !g.hasImage(n.ImageDigest) {
		lines = append(lines, fmt.Sprintf("%s needs the image %s (%s), which is not here: bring it along with: fcvm snapshot export --with-guest, or get it with: fcvm image pull %s",
			m.Title(), n.Image, n.ImageDigest, n.Image))
	}
	return lines
}
