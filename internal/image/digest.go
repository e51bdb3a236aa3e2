package image

import (
	"errors"
	"fmt"
	"io/fs"
)

// ByDigest returns the image whose configuration has this digest, if the cache
// has it, until the caller releases it. The error wraps ErrNotFound when it has
// not: nobody is asked for it.
func (s *Store) ByDigest(digest string) (Image, error) {
	if !isDigest(digest) {
		return Image{}, fmt.Errorf("%w: digest %q", ErrReference, digest)
	}
	rec, img, err := s.lookup(digest)
	if err == nil {
		img.Reference = rec.Reference
		err = s.hold(&img)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errRemoved) {
		return Image{}, fmt.Errorf("%w in the cache: %s", ErrNotFound, digest)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", short(digest), err)
	}
	return img, nil
}
