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

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sys/unix"
)

// holdTries is how often an image is looked for again, after lockPoll each time,
// that was removed in the moment between its being found and its being held, or
// that somebody is about to remove.
const holdTries = 100

var errRemoved = errors.New("the image was removed meanwhile")

// Entry is one image of the cache.
type Entry struct {
	Digest    string
	Reference string    // that it was made for
	Names     []Name    // that it has now, sorted
	Platform  string    // "linux/amd64"
	Created   time.Time // when it was made here
	LastUsed  time.Time // by a VM or by a command that gets images ready
	DiskSize  int64     // bytes, holes included
	Layers    []Layer   // those that are in the cache, lowest first
	Config    Config
	Dir       string // its disk and records
	Err       error  // why it is of no use; the rest may be empty
}

// Name is one that an image has.
type Name struct {
	Name     string // in full: "docker.io/library/nginx:latest"
	Manifest string // digest of what the registry has under it; empty if it was given here
	file     string
}

// Disk is the path of the image's ext4 file.
func (e Entry) Disk() string { return filepath.Join(e.Dir, diskName) }

// List returns all images of the cache, oldest first. One that is broken is
// an entry with Err set.
func (s *Store) List() ([]Entry, error) {
	dirs, err := os.ReadDir(s.join("disks"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	names, err := s.names()
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
		e := Entry{
			Digest: digest, Reference: rec.Reference, Names: names[digest], Platform: rec.Platform, Created: rec.Created,
			DiskSize: rec.Size, Layers: s.keptLayers(digest), Config: rec.Config, Dir: s.entry(digest), Err: err,
		}
		if st, err := os.Stat(filepath.Join(e.Dir, recordName)); err == nil {
			e.LastUsed = st.ModTime()
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// names says for each image which names it has.
func (s *Store) names() (map[string][]Name, error) {
	files, err := os.ReadDir(s.join("refs"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	names := map[string][]Name{}
	for _, f := range files {
		var res resolution
		path := s.join("refs", f.Name())
		if readJSON(path, &res) != nil || !isDigest(res.Digest) || !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		full := res.Reference
		if n, err := name.ParseReference(full); err == nil {
			full = fullName(n)
		}
		names[res.Digest] = append(names[res.Digest], Name{Name: full, Manifest: res.Manifest, file: path})
	}
	for _, n := range names {
		slices.SortFunc(n, func(a, b Name) int { return strings.Compare(a.Name, b.Name) })
	}
	return names, nil
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
	if err := s.dropReferences(digest); err != nil {
		return true, err
	}
	_, err = s.Collect(false) // if somebody fetches images now, the next one will
	return true, err
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
			s.touch(img.Digest)
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
