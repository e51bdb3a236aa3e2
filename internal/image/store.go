package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"github.com/fcvm/fcvm/internal/progress"
)

// Store is the image cache. It is safe for concurrent use, by any number of
// processes.
//
//	DIR/disks/HEX/image.ext4   the image whose configuration has this digest
//	DIR/disks/HEX/image.json   its record
//	DIR/refs/HEX.json          what a registry reference was resolved to
//	DIR/work/HEX/              a conversion that runs; its lock's holder owns it
//	DIR/locks/HEX              flock: who converts this image
type Store struct {
	// Limits bound what is taken from an image. Set them, if at all, before
	// the first use.
	Limits Limits

	dir string
}

const (
	recordSchema = 1
	maxRecord    = 16 << 20 // bytes of a record or reference; what is larger is not ours
	diskName     = "image.ext4"
	recordName   = "image.json"
)

// record is what is known of an image in the cache, beside its disk.
type record struct {
	Schema    int       `json:"schema"`
	Digest    string    `json:"digest"`
	Reference string    `json:"reference"` // that it was first made for
	Platform  string    `json:"platform"`
	Created   time.Time `json:"created"`
	Size      int64     `json:"size"`
	Config    Config    `json:"config"`
}

// resolution is what a registry said a reference is.
type resolution struct {
	Schema    int       `json:"schema"`
	Reference string    `json:"reference"` // in full: registry, repository, tag or digest
	Platform  string    `json:"platform"`
	Digest    string    `json:"digest"`
	Resolved  time.Time `json:"resolved"`
}

// Open makes the cache's directories, and removes what interrupted
// conversions have left.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, d := range []string{dir, s.join("disks"), s.join("refs"), s.work(), s.join("locks")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open image cache: %w", s.diskError(err))
		}
	}
	s.sweep()
	return s, nil
}

func (s *Store) join(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *Store) work() string                 { return s.join("work") }
func (s *Store) entry(digest string) string   { return s.join("disks", hexOf(digest)) }
func (s *Store) workFor(digest string) string { return s.join("work", hexOf(digest)) }
func (s *Store) lockFor(digest string) string { return s.join("locks", hexOf(digest)) }
func (s *Store) limits() Limits               { return s.Limits.orDefault() }
func (s *Store) refFor(r reference, p platform) string {
	return s.join("refs", hexOf(digestOf([]byte(r.name.Name()+"\x00"+p.String())))+".json")
}

// hexOf is for digests that isDigest accepts.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// sweep removes the work of conversions that nobody runs any more.
func (s *Store) sweep() {
	list, err := os.ReadDir(s.work())
	if err != nil {
		return // the next conversion will say what is wrong
	}
	for _, e := range list {
		if !e.IsDir() { // an unpacked archive that was about to lose its name
			_ = os.Remove(s.join("work", e.Name()))
			continue
		}
		if l, err := tryLock(s.join("locks", e.Name())); err == nil && l != nil {
			_ = os.RemoveAll(s.join("work", e.Name()))
			l.release()
		}
	}
	locks, err := os.ReadDir(s.join("locks"))
	if err != nil {
		return
	}
	for _, e := range locks { // of those that were killed before they began
		if l, err := tryLock(s.join("locks", e.Name())); err == nil && l != nil {
			l.release()
		}
	}
}

// Ensure returns the image that ref names, converting it first if the cache
// has not got it. It stays in the cache until the caller releases it. The error wraps one of this package's sentinels where one
// fits.
func (s *Store) Ensure(ctx context.Context, ref string, o EnsureOptions) (Image, error) {
	if o.Progress == nil {
		o.Progress = progress.Discard
	}
	r, err := parseReference(ref)
	if err != nil {
		return Image{}, err
	}
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return Image{}, err
	}
	for try := 1; ; try++ {
		img, err := s.ensure(ctx, r, want, o)
		if err == nil {
			err = s.hold(&img)
		}
		if errors.Is(err, errRemoved) && try < holdTries {
			select {
			case <-time.After(lockPoll):
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		if err != nil {
			return Image{}, fmt.Errorf("image %s: %w", ref, err)
		}
		img.Reference = ref
		return img, nil
	}
}

func (s *Store) ensure(ctx context.Context, r reference, want platform, o EnsureOptions) (Image, error) {
	switch o.Pull {
	case "", PullMissing, PullAlways, PullNever:
	default:
		return Image{}, fmt.Errorf("%w: --pull %q: it is missing, always or never", ErrReference, o.Pull)
	}
	if r.kind != kindRegistry {
		c, err := s.findFile(ctx, r, want)
		if err != nil {
			return Image{}, err
		}
		defer c.close()
		return s.obtain(ctx, c, r, want, o)
	}
	if o.Pull != PullAlways {
		if img, ok := s.resolved(r, want); ok {
			return img, nil
		}
	}
	if o.Pull == PullNever {
		return Image{}, fmt.Errorf("%w in the cache, and pulling is off: leave out --pull never", ErrNotFound)
	}
	c, err := s.findRemote(ctx, r, want)
	if err != nil {
		return Image{}, err
	}
	defer c.close()
	img, err := s.obtain(ctx, c, r, want, o)
	if err != nil {
		return Image{}, err
	}
	return img, s.remember(r, want, img.Digest)
}

// resolved returns the image of a reference that was resolved before.
func (s *Store) resolved(r reference, p platform) (Image, bool) {
	var res resolution
	if err := readJSON(s.refFor(r, p), &res); err != nil || res.Schema != recordSchema || !isDigest(res.Digest) {
		return Image{}, false
	}
	_, img, err := s.lookup(res.Digest)
	return img, err == nil
}

func (s *Store) remember(r reference, p platform, digest string) error {
	return s.writeJSON(s.refFor(r, p), resolution{
		Schema: recordSchema, Reference: r.name.Name(), Platform: p.String(),
		Digest: digest, Resolved: time.Now().UTC(),
	})
}

// lookup returns a finished image. One whose disk is not as long as its
// record says is no finished image.
func (s *Store) lookup(digest string) (record, Image, error) {
	var rec record
	if err := readJSON(filepath.Join(s.entry(digest), recordName), &rec); err != nil {
		return rec, Image{}, err
	}
	disk := filepath.Join(s.entry(digest), diskName)
	st, err := os.Stat(disk)
	if err != nil {
		return rec, Image{}, err
	}
	if rec.Schema != recordSchema || rec.Digest != digest || rec.Size != st.Size() {
		return rec, Image{}, fmt.Errorf("%w: the cached disk %s", ErrCorrupt, disk)
	}
	return rec, Image{Digest: digest, Config: rec.Config, Disk: disk, Size: rec.Size, Cached: true}, nil
}

func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b, err := readBounded(f, maxRecord)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func (s *Store) writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return s.diskError(err)
	}
	return nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// diskError says what to do about a full disk or a directory that is not
// ours. Other errors stay what they are.
func (s *Store) diskError(err error) error {
	switch {
	case errors.Is(err, ErrNoSpace), isNoSpace(err):
		return fmt.Errorf("%w: %s is full: free some, or choose another place with --data-dir", ErrNoSpace, s.dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: use a directory that belongs to you", err)
	}
	return err
}
