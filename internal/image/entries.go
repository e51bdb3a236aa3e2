package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// holdTries is how often an image is looked for again, after lockPoll each time,
// that was removed in the moment between its being found and its being held, or
// that somebody is about to remove.
const holdTries = 100

var errRemoved = errors.New("the image was removed meanwhile")

// Entry is one image of the cache.
type Entry struct {
	Digest     string
	Reference  string    // that it was made for
	References []string  // of registries, that point at it now
	Created    time.Time // when it was made
	Dir        string    // all that the cache has of it
	Err        error     // why it is of no use; the rest may be empty
}

// List returns all images of the cache, oldest first. One that is broken is
// an entry with Err set.
func (s *Store) List() ([]Entry, error) {
	dirs, err := os.ReadDir(s.join("disks"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	refs, err := s.references()
	if err != nil {
		return nil, err
	}
	var list []Entry
	for _, d := range dirs {
		digest := "sha256:" + d.Name()
		if !isDigest(digest) {
			continue // not ours
		}
		rec, _, err := s.lookup(digest)
		if errors.Is(err, fs.ErrNotExist) {
			if _, gone := os.Stat(s.entry(digest)); errors.Is(gone, fs.ErrNotExist) {
				continue // removed meanwhile
			}
		}
		list = append(list, Entry{
			Digest: digest, Reference: rec.Reference, References: refs[digest], Created: rec.Created, Dir: s.entry(digest), Err: err,
		})
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// references says for each image which references point at it.
func (s *Store) references() (map[string][]string, error) {
	files, err := os.ReadDir(s.join("refs"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	refs := map[string][]string{}
	for _, f := range files {
		var res resolution
		if err := readJSON(s.join("refs", f.Name()), &res); err == nil && isDigest(res.Digest) {
			refs[res.Digest] = append(refs[res.Digest], res.Reference)
		}
	}
	return refs, nil
}

// IsFile reports whether a reference names a file or a directory, rather than
// something in a registry.
func IsFile(ref string) bool {
	r, err := parseReference(ref)
	return err == nil && r.kind != kindRegistry
}

// Remove drops an image, unless somebody holds it or inUse, which is asked
// while nobody can take it, says that it is used. It reports whether it has.
func (s *Store) Remove(digest string, inUse func() (bool, error)) (bool, error) {
	if !isDigest(digest) {
		return false, fmt.Errorf("%w: digest %q", ErrReference, digest)
	}
	// Who makes this image has this lock.
	l, err := tryLock(s.lockFor(digest))
	if err != nil || l == nil {
		return false, err
	}
	defer l.release()
	held, err := holdFile(filepath.Join(s.entry(digest), recordName), unix.LOCK_EX)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	case err == nil:
		defer func() { _ = held.Close() }()
	case !errors.Is(err, fs.ErrNotExist): // without a record nobody has it
		return false, fmt.Errorf("remove image %s: %w", short(digest), err)
	}
	used, err := inUse()
	if err != nil || used {
		return false, err
	}
	// Out of sight in one step; what is left of it is swept as any work is.
	trash := s.workFor(digest)
	if err := os.RemoveAll(trash); err != nil {
		return false, fmt.Errorf("remove image %s: %w", short(digest), err)
	}
	if err := os.Rename(s.entry(digest), trash); err != nil {
		return false, fmt.Errorf("remove image %s: %w", short(digest), err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return false, fmt.Errorf("remove image %s: %w", short(digest), err)
	}
	return true, s.dropReferences(digest)
}

// dropReferences forgets what pointed at an image that is gone.
func (s *Store) dropReferences(digest string) error {
	files, err := os.ReadDir(s.join("refs"))
	if err != nil {
		return fmt.Errorf("remove references: %w", err)
	}
	for _, f := range files {
		var res resolution
		path := s.join("refs", f.Name())
		if readJSON(path, &res) != nil || res.Digest != digest || !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove references: %w", err)
		}
	}
	return nil
}

// holdFile opens a file and takes a lock on it. The kernel lets go of it when
// the file is closed, or its process dies.
func holdFile(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// hold keeps the image from being removed until Release.
func (s *Store) hold(img *Image) error {
	path := filepath.Join(s.entry(img.Digest), recordName)
	f, err := holdFile(path, unix.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
		return errRemoved // or is about to be
	}
	if err != nil {
		return fmt.Errorf("hold image: %w", err)
	}
	mine, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(path); err == nil && os.SameFile(mine, now) {
			img.held = f
			return nil
		}
	}
	_ = f.Close()
	return errRemoved
}

// Release lets go of an image that Ensure has returned. Until then it cannot
// be removed from the cache.
func (i *Image) Release() {
	if i.held != nil {
		_ = i.held.Close()
		i.held = nil
	}
}
