package image

import (
	"context"
	"fmt"
	"os"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// Layers finds the image that ref names and returns its layers, lowest first,
// for a caller that makes something else of them than a disk in the cache.
// They can be read, more than once, until release is called. EnsureOptions.Pull
// is not looked at: a registry is always asked.
func (s *Store) Layers(ctx context.Context, ref string, o EnsureOptions) (layers []rootfs.Layer, release func(), err error) {
	if o.Progress == nil {
		o.Progress = progress.Discard
	}
	r, err := parseReference(ref)
	if err != nil {
		return nil, nil, err
	}
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, nil, err
	}
	find := s.findRemote
	if r.kind != kindRegistry {
		find = s.findFile
	}
	c, err := find(ctx, r, want)
	if err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", ref, err)
	}
	// The lock also keeps the work directory from being swept.
	l, err := takeLock(ctx, s.lockFor(c.id), func() {
		o.Progress.Note("waiting for another fcvm that is converting " + r.text)
	})
	if err != nil {
		c.close()
		return nil, nil, s.diskError(err)
	}
	work := s.workFor(c.id)
	release = func() {
		_ = os.RemoveAll(work)
		l.release()
		c.close()
	}
	if layers, err = s.fetchLayers(ctx, c, want, o.Progress, work); err != nil {
		release()
		return nil, nil, fmt.Errorf("image %s: %w", ref, s.diskError(err))
	}
	return layers, release, nil
}

// fetchLayers makes the work directory anew and the layers readable.
func (s *Store) fetchLayers(ctx context.Context, c *content, want platform, p progress.Reporter, work string) ([]rootfs.Layer, error) {
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	cf, err := checkedConfig(ctx, c, want)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	layers, _, err := s.layers(ctx, c, cf, p, work)
	return layers, err
}
