package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/fcvm/fcvm/internal/progress"
)

// LoadDigest takes the image whose configuration has this digest from an archive,
// as Load does, and nothing else: neither other images nor names. Whoever has made
// the archive has no say in what a name means here. The image stays in the cache
// until the caller releases it.
func (s *Store) LoadDigest(ctx context.Context, in *os.File, digest string, p progress.Reporter) (Image, error) {
	if !isDigest(digest) {
		return Image{}, fmt.Errorf("%w: digest %q", ErrReference, digest)
	}
	if err := s.loadDigest(ctx, in, digest, p); err != nil {
		return Image{}, fmt.Errorf("load image %s: %w", short(digest), s.diskError(err))
	}
	return s.ByDigest(digest)
}

func (s *Store) loadDigest(ctx context.Context, in *os.File, digest string, p progress.Reporter) error {
	f, err := s.seekable(ctx, in)
	if err != nil {
		return err
	}
	fsys, err := indexTar(ctx, f, s.work(), s.limits().Rootfs.Bytes)
	if err != nil {
		return err
	}
	defer fsys.close()
	want, err := parsePlatform("")
	if err != nil {
		return err
	}
	list, err := members(ctx, fsys, want, s.limits())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(m member) bool { return m.err == nil && m.c.id == digest })
	if i < 0 {
		var others []error // that do not run here
		for _, m := range list {
			others = append(others, m.err)
		}
		return errors.Join(append(others, fmt.Errorf("%w in the archive", ErrNotFound))...)
	}
	m := list[i]
	m.names = nil
	_, err = s.loadMember(ctx, m, want, LoadOptions{Progress: p})
	return err
}
