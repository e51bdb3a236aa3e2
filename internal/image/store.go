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
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/fcvm/fcvm/internal/atomicfile"
	"github.com/fcvm/fcvm/internal/progress"
)

// Store is the image cache. It is safe for concurrent use, by any number of
// processes.
//
//	DIR/disks/HEX/image.ext4   the image whose configuration has this digest
//	DIR/disks/HEX/image.json   its record; its time is when the image was last used
//	DIR/disks/HEX/config.json  the configuration itself
//	DIR/disks/HEX/layers.json  its layers, if they are kept
//	DIR/blobs/HEX              a layer that is kept, with this digest
//	DIR/blobs.lock             flock: shared by who fetches layers
//	DIR/partial/HEX            a layer that has not come in whole
//	DIR/refs/HEX.json          what a registry reference was resolved to
//	DIR/work/HEX/              a conversion that runs; its lock's holder owns it
//	DIR/locks/HEX              flock: who converts this image
type Store struct {
	// Limits bound what is taken from an image. Set them, if at all, before
	// the first use.
	Limits Limits

	dir string

	// gc is how the garbage collector was set before the conversions that run.
	gc struct {
		sync.Mutex
		conversions int
		usual       int
	}
}

const (
	recordSchema = 1
	maxRecord    = 16 << 20 // bytes of a record or reference; what is larger is not ours
	diskName     = "image.ext4"
	recordName   = "image.json"
	configName   = "config.json"
)

// record is what is known of an image in the cache, beside its disk.
type record struct {
	Schema    int       `json:"schema"`
	Digest    string    `json:"digest"`
	Reference string    `json:"reference"` // that it was first made for
	Platform  string    `json:"platform"`
	Created   time.Time `json:"created"`
	Size      int64     `json:"size"`
	Sum       string    `json:"sum,omitempty"` // of the disk, see sumDisk
	Config    Config    `json:"config"`
}

// resolution is what a registry said a reference is.
type resolution struct {
	Schema    int       `json:"schema"`
	Reference string    `json:"reference"` // in full: registry, repository, tag or digest
	Platform  string    `json:"platform"`
	Digest    string    `json:"digest"`
	Manifest  string    `json:"manifest,omitempty"` // what the registry has under the name
	Resolved  time.Time `json:"resolved"`
}

// Open makes the cache's directories, and removes what interrupted
// conversions have left.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, d := range []string{dir, s.join("disks"), s.join("refs"), s.work(), s.join("locks"), s.join("blobs"), s.join("partial")} {
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
// has not got it. It stays in the cache until the caller releases it. The
// error wraps one of this package's sentinels where one fits.
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
	if r.kind == kindID {
		return s.byID(r, want)
	}
	if r.kind == kindRegistry && o.Pull != PullAlways {
		img, ok, err := s.resolved(r, want)
		if !ok && err == nil {
			img, ok, err = s.byPrefix(r, want)
		}
		if ok || err != nil {
			return img, err
		}
		if o.Pull == PullNever {
			return Image{}, fmt.Errorf("%w in the cache, and pulling is off: leave out --pull never", ErrNotFound)
		}
	}
	if (r.kind == kindContainersStorage || r.kind == kindDockerDaemon) && !o.Keep {
		if img, ok := s.converted(ctx, r, want); ok {
			return img, nil
		}
	}
	c, err := s.find(ctx, &r, want, o)
	if err != nil {
		return Image{}, err
	}
	defer c.close()
	c.keep = c.keep || o.Keep
	img, err := s.obtain(ctx, c, r, want, o)
	if err != nil || r.kind != kindRegistry {
		return img, err
	}
	return img, s.remember(r, want, img.Digest, c.manifest)
}

// find finds an image at its source.
func (s *Store) find(ctx context.Context, r *reference, want platform, o EnsureOptions) (*content, error) {
	switch r.kind {
	case kindRegistry:
		return s.findRemote(ctx, r, want, o.Access)
	case kindContainersStorage, kindDockerDaemon:
		return s.findLocal(ctx, *r, want, o.Progress)
	case kindID:
		return s.findCached(ctx, r.digest)
	}
	return s.findFile(ctx, *r, want)
}

// resolved returns the image of a reference that was resolved before, or that
// was given that name here.
func (s *Store) resolved(r reference, p platform) (Image, bool, error) {
	names := []name.Reference{r.name}
	if isShort(r.text) {
		conf, err := loadRegistries(os.Getenv)
		if err != nil {
			return Image{}, false, err
		}
		meant, err := conf.meanings(r.text)
		if err != nil {
			meant = nil // it may be the name of something here; if not, this is said when registries are asked
		}
		names = append(meant, names...)
	}
	for _, n := range names {
		r.name = n
		if _, img, err := s.lookup(s.resolution(r, p).Digest); err == nil {
			return img, true, nil
		}
		given := s.resolution(r, p.plain())
		if rec, img, err := s.lookup(given.Digest); err == nil && given.Manifest == "" && checkPlatform(p, rec.Platform) == nil {
			return img, true, nil
		}
	}
	return Image{}, false, nil
}

// resolution returns what a name in a registry was resolved to, or nothing.
func (s *Store) resolution(r reference, p platform) resolution {
	var res resolution
	if err := readJSON(s.refFor(r, p), &res); err == nil && res.Schema == recordSchema && isDigest(res.Digest) {
		return res
	}
	return resolution{}
}

func (s *Store) remember(r reference, p platform, digest, manifest string) error {
	return s.writeJSON(s.refFor(r, p), resolution{
		Schema: recordSchema, Reference: r.name.Name(), Platform: p.String(),
		Digest: digest, Manifest: manifest, Resolved: time.Now().UTC(),
	})
}

// lookup returns a finished image. One whose disk is not as long as its
// record says is no finished image.
func (s *Store) lookup(digest string) (record, Image, error) {
	var rec record
	if digest == "" {
		return rec, Image{}, ErrNotFound
	}
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
	if err := atomicfile.Write(path, append(b, '\n'), 0o600); err != nil {
		return s.diskError(err)
	}
	return nil
}

// writeConfig keeps a configuration as it is: its digest is the image's.
func (s *Store) writeConfig(dir string, raw []byte) error {
	return s.diskError(atomicfile.Write(filepath.Join(dir, configName), raw, 0o600))
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// diskError says what to do about a full disk or a directory that is not
// ours. Other errors stay what they are.
func (s *Store) diskError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoSpace), isNoSpace(err):
		return fmt.Errorf("%w: %s is full: free some, or choose another place with --data-dir", ErrNoSpace, s.dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: use a directory that belongs to you", err)
	}
	return err
}
