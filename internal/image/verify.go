package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/progress"
)

// VerifyOptions for Verify. The zero value is usable.
type VerifyOptions struct {
	CheckOnly bool // say what is wrong, and leave it so
	Access    Access
	Progress  progress.Reporter // nil: progress.Discard
}

// Verdict is what Verify found of an image.
type Verdict struct {
	Damage []string // what was wrong; empty: nothing
	Healed bool     // and is not any more
}

// Verify reads all that the cache has of an image and compares it with its
// checksums: the configuration, the layers, the disk. What is damaged is made
// good: layers are fetched again from the registry that the image came from,
// the disk is made again of the layers or of the archive it was made of. The
// error says why that was not possible.
func (s *Store) Verify(ctx context.Context, e Entry, o VerifyOptions) (Verdict, error) {
	if o.Progress == nil {
		o.Progress = progress.Discard
	}
	var v Verdict
	layers, config, diskErr, err := s.examine(ctx, e, o.Progress)
	if err != nil {
		return v, fmt.Errorf("verify image %s: %w", short(e.Digest), err)
	}
	for _, l := range layers {
		v.Damage = append(v.Damage, "layer "+short(l.Digest))
	}
	if config != nil {
		v.Damage = append(v.Damage, "configuration")
	}
	if diskErr != nil {
		v.Damage = append(v.Damage, "disk")
	}
	if len(v.Damage) == 0 || o.CheckOnly {
		return v, nil
	}
	if err := s.heal(ctx, e, layers, config != nil, diskErr != nil, o); err != nil {
		return v, fmt.Errorf("image %s is damaged (%s) and cannot be made good: %w", short(e.Digest), strings.Join(v.Damage, ", "), err)
	}
	v.Healed = true
	return v, nil
}

// examine returns the layers that are damaged, and what is wrong with the
// configuration and the disk.
func (s *Store) examine(ctx context.Context, e Entry, p progress.Reporter) (bad []Layer, config, disk, err error) {
	task := p.Task("verify "+short(e.Digest), e.DiskSize+sizeOf(e.Layers))
	defer func() { task.Done(err) }()
	for _, l := range e.Layers {
		sum, err := sumFile(ctx, s.blob(l.Digest), task.Add)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, nil, nil, err
		case err != nil || sum != l.Digest:
			bad = append(bad, l)
		}
	}
	if len(e.Layers) > 0 { // else there may be none: an older fcvm has made it, or its archive has it
		_, config = s.rawConfig(ctx, e.Digest)
	}
	rec, _, err := s.lookup(e.Digest)
	switch {
	case err != nil:
		return bad, config, err, nil //nolint:nilerr // it is what is wrong
	case rec.Sum == "":
		p.Note("the disk of " + short(e.Digest) + " was made by an older fcvm, which kept no checksum: it is made again")
		return bad, config, errNoSum, nil
	}
	disk = checkDisk(ctx, rec, e.Disk(), task.Add)
	if disk != nil && !errors.Is(disk, ErrCorrupt) {
		return nil, nil, nil, disk
	}
	return bad, config, disk, nil
}

// heal makes good what is damaged.
func (s *Store) heal(ctx context.Context, e Entry, bad []Layer, config, disk bool, o VerifyOptions) error {
	blobs, err := s.useBlobs(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = blobs.Close() }()
	if len(bad) > 0 || config {
		if err := s.refetch(ctx, e, bad, o); err != nil {
			return err
		}
	}
	if !disk {
		return nil
	}
	c, err := s.findCached(ctx, e.Digest)
	if err != nil {
		return err
	}
	defer c.close()
	return s.remake(ctx, e, c, o.Progress)
}

// refetch gets layers and the configuration again from a registry.
func (s *Store) refetch(ctx context.Context, e Entry, bad []Layer, o VerifyOptions) error {
	c, err := s.findOrigin(ctx, e, o.Access)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := s.dropDamaged(ctx, bad, nil); err != nil {
		return err
	}
	for _, b := range c.layers {
		if err := s.fetchBlob(ctx, b, o.Progress); err != nil {
			return err
		}
	}
	raw, err := c.config(ctx)
	if err != nil {
		return err
	}
	return s.writeConfig(e.Dir, raw)
}

// findOrigin finds an image again where it was pulled from: under the digest
// that the registry had, for its tag may have moved.
func (s *Store) findOrigin(ctx context.Context, e Entry, a Access) (*content, error) {
	want, err := parsePlatform(e.Platform)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, n := range e.Names {
		if n.Manifest == "" {
			continue
		}
		repo := n.Name
		if i := strings.LastIndexAny(repo, ":@"); i > strings.LastIndexByte(repo, '/') {
			repo = repo[:i]
		}
		r, err := parseReference(strings.TrimSuffix(repo, "@sha256") + "@" + n.Manifest)
		if err != nil {
			return nil, err
		}
		c, err := s.findRemote(ctx, &r, want, a)
		if err == nil && c.id == e.Digest {
			return c, nil
		}
		if err == nil {
			c.close()
			err = fmt.Errorf("%w: %s is another image now", ErrNotFound, r.text)
		}
		failed = append(failed, err)
	}
	if len(failed) == 0 {
		return nil, fmt.Errorf("%w: it was loaded or imported, so no registry has it: load it again, which replaces what is damaged, then verify it again", ErrNotFound)
	}
	return nil, errors.Join(failed...)
}

// remake makes an image's disk again. One that is the same as it was takes the
// old one's place even while VMs use that; another one only when none does.
func (s *Store) remake(ctx context.Context, e Entry, c *content, p progress.Reporter) error {
	l, err := takeLock(ctx, s.lockFor(e.Digest), nil)
	if err != nil {
		return s.diskError(err)
	}
	defer l.release()
	work := s.workFor(e.Digest)
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	rec, _, lookupErr := s.lookup(e.Digest)
	r := reference{text: e.Reference}
	if r.text == "" && len(e.Names) > 0 { // its record cannot be read
		r.text = e.Names[0].Name
	}
	want, err := parsePlatform(e.Platform)
	if err != nil {
		return err
	}
	made, err := s.make(ctx, c, r, want, p, work)
	if err != nil {
		return s.diskError(err)
	}
	var now record
	if err := readJSON(filepath.Join(made, recordName), &now); err != nil {
		return err
	}
	if lookupErr == nil && now.Sum == rec.Sum && now.Size == rec.Size {
		return os.Rename(filepath.Join(made, diskName), e.Disk())
	}
	held, err := holdFile(filepath.Join(e.Dir, recordName), unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("the disk is in use, and can be replaced only when no VM uses it: stop those, and verify again")
	}
	if err == nil {
		defer func() { _ = held.Close() }()
	}
	return s.replace(made, e.Digest)
}
