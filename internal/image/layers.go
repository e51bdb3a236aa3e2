package image

import (
	"context"
	"fmt"

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
	c, err := s.find(ctx, &r, want, o)
	if err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", ref, err)
	}
	if !c.keep {
		layers, err = s.readableLayers(ctx, c, want, o.Progress)
		if err != nil {
			c.close()
			return nil, nil, fmt.Errorf("image %s: %w", ref, s.diskError(err))
		}
		return layers, c.close, nil
	}
	blobs, err := s.useBlobs(ctx)
	if err != nil {
		c.close()
		return nil, nil, s.diskError(err)
	}
	release = func() {
		c.close()
		_ = blobs.Close()
		_, _ = s.Collect(false) // no image has them, unless it was pulled
	}
	if layers, err = s.readableLayers(ctx, c, want, o.Progress); err != nil {
		release()
		return nil, nil, fmt.Errorf("image %s: %w", ref, s.diskError(err))
	}
	return layers, release, nil
}

func (s *Store) readableLayers(ctx context.Context, c *content, want platform, p progress.Reporter) ([]rootfs.Layer, error) {
	cf, err := checkedConfig(ctx, c, want)
	if err != nil {
		return nil, err
	}
	layers, _, err := s.layers(ctx, c, cf, p)
	return layers, err
}
