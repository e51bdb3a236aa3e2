package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// beginsID reports whether s may be the beginning of an id.
func beginsID(s string) bool {
	return len(s) >= 4 && len(s) <= 64 && isHex(s)
}

// Find returns the image of the cache that ref names: a reference, a name that
// an image was given, its id ("sha256:…") or the unique beginning of one.
// platform picks one where a name stands for several; empty: this machine's,
// else any.
func (s *Store) Find(ref, wanted string) (Entry, error) {
	want, err := parsePlatform(wanted)
	if err != nil {
		return Entry{}, err
	}
	list, err := s.List()
	if err != nil {
		return Entry{}, err
	}
	digest, err := s.digestFor(ref, want, wanted == "", list)
	if err != nil {
		return Entry{}, fmt.Errorf("image %s: %w", ref, err)
	}
	i := slices.IndexFunc(list, func(e Entry) bool { return e.Digest == digest })
	if i < 0 {
		return Entry{}, fmt.Errorf("image %s: %w in the cache (list them with: fcvm image ls)", ref, ErrNotFound)
	}
	return list[i], nil
}

// digestFor returns the digest of the image in the list that ref names; empty
// if there is none.
func (s *Store) digestFor(ref string, want platform, anyPlatform bool, list []Entry) (string, error) {
	r, err := parseReference(ref)
	if err == nil && r.kind == kindID {
		return r.digest, nil
	}
	if err == nil && r.kind != kindRegistry { // the newest that was made of it
		for _, e := range slices.Backward(list) {
			if e.Reference == ref {
				return e.Digest, nil
			}
		}
		return "", nil
	}
	if err == nil {
		if img, ok, err := s.resolved(r, want); ok || err != nil {
			return img.Digest, err
		}
		for _, e := range list {
			named := slices.ContainsFunc(e.Names, func(n Name) bool { return n.Name == fullName(r.name) })
			if named && (anyPlatform || e.Err != nil) {
				return e.Digest, nil
			}
		}
	}
	if beginsID(ref) {
		return uniqueID(ref, list)
	}
	return "", err
}

// uniqueID returns the only digest that begins so.
func uniqueID(prefix string, list []Entry) (string, error) {
	var found []string
	for _, e := range list {
		if strings.HasPrefix(hexOf(e.Digest), prefix) {
			found = append(found, e.Digest)
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%w: %d images have an id that begins so; give more of it", ErrReference, len(found))
}

// byID returns the image with an id from the cache.
func (s *Store) byID(r reference, want platform) (Image, error) {
	rec, img, err := s.lookup(r.digest)
	if err != nil {
		return Image{}, fmt.Errorf("%w in the cache (list them with: fcvm image ls)", ErrNotFound)
	}
	return img, checkPlatform(want, rec.Platform)
}

// byPrefix returns the image of the cache whose id begins so, as image ls shows
// it, if there is one: no registry is asked for a name that is an id here.
func (s *Store) byPrefix(r reference, want platform) (img Image, ok bool, err error) {
	if !beginsID(r.text) {
		return Image{}, false, nil
	}
	list, err := s.List()
	if err != nil {
		return Image{}, false, err
	}
	digest, err := uniqueID(r.text, list)
	if digest == "" {
		return Image{}, false, err
	}
	r.digest = digest
	img, err = s.byID(r, want)
	return img, err == nil, err
}

// findCached returns an image with its layers from the cache, or from the
// archive that it was made of.
func (s *Store) findCached(ctx context.Context, digest string) (*content, error) {
	layers := s.keptLayers(digest)
	if layers == nil {
		return s.findSource(ctx, digest)
	}
	c := &content{id: digest, keep: true, close: func() {}}
	c.config = func(ctx context.Context) ([]byte, error) { return s.rawConfig(ctx, digest) }
	for _, l := range layers {
		if !s.hasBlob(l.Digest, l.Size) {
			return nil, fmt.Errorf("%w: layer %s is missing from the cache: fetch it again with: fcvm image verify", ErrCorrupt, short(l.Digest))
		}
		c.layers = append(c.layers, blob{
			digest: l.Digest, size: l.Size, mediaType: l.MediaType, local: true,
			open: func(context.Context) (io.ReadCloser, error) { return os.Open(s.blob(l.Digest)) },
		})
	}
	return c, nil
}

// findSource goes back to the archive or storage that an image was made of.
func (s *Store) findSource(ctx context.Context, digest string) (*content, error) {
	rec, _, err := s.lookup(digest)
	if err != nil && rec.Reference == "" {
		return nil, fmt.Errorf("%w in the cache", ErrNotFound)
	}
	gone := func(err error) error {
		return fmt.Errorf("%w: its layers are not in the cache, and %s is not what it was made of any more: get it again", errors.Join(ErrNotFound, err), rec.Reference)
	}
	r, err := parseReference(rec.Reference)
	if err != nil || r.kind == kindRegistry || r.kind == kindID {
		return nil, gone(err)
	}
	want, err := parsePlatform(rec.Platform)
	if err != nil {
		return nil, err
	}
	c, err := s.find(ctx, &r, want, EnsureOptions{})
	if err != nil {
		return nil, gone(err)
	}
	if c.id != digest {
		c.close()
		return nil, gone(nil)
	}
	return c, nil
}

// Tag gives an image of the cache one more name, which is taken from the one
// that has it.
func (s *Store) Tag(e Entry, newName string) error {
	r, err := parseReference(newName)
	if err != nil {
		return err
	}
	if r.kind != kindRegistry || strings.Contains(newName, "@") {
		return fmt.Errorf("%w: %q: a name has the form NAME[:TAG] or HOST/NAME[:TAG]", ErrReference, newName)
	}
	held := Image{Digest: e.Digest}
	if err := s.hold(&held); err != nil {
		return fmt.Errorf("tag image %s: %w", short(e.Digest), err)
	}
	defer held.Release()
	p, err := parsePlatform(e.Platform)
	if err != nil {
		return err
	}
	return s.remember(r, p.plain(), e.Digest, "")
}

// Named returns the name, in full, of an image that ref means; empty if ref is
// an id or names no registry's image.
func (s *Store) Named(e Entry, ref string) string {
	r, err := parseReference(ref)
	if err != nil || r.kind != kindRegistry {
		return ""
	}
	for _, n := range e.Names {
		if n.Name == fullName(r.name) || s.means(r.text, n.Name) {
			return n.Name
		}
	}
	return ""
}

// Untag takes a name, in full, from an image. One that it has not is no error.
func (s *Store) Untag(e Entry, full string) error {
	for _, n := range e.Names {
		if n.Name != full {
			continue
		}
		if err := os.Remove(n.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the name %s: %w", full, err)
		}
	}
	return nil
}

// means reports whether a short name can stand for a full one.
func (s *Store) means(text, full string) bool {
	if !isShort(text) {
		return false
	}
	conf, err := loadRegistries(os.Getenv)
	if err != nil {
		return false
	}
	names, err := conf.meanings(text)
	if err != nil {
		return false
	}
	for _, n := range names {
		if fullName(n) == full {
			return true
		}
	}
	return false
}

// touch remembers that an image was used now.
func (s *Store) touch(digest string) {
	now := time.Now()
	// Who cannot write there cannot remove images either.
	_ = os.Chtimes(filepath.Join(s.entry(digest), recordName), now, now)
}
