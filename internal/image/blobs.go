package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/progress"
)

// Layers of images that came from a registry, or were loaded or imported, are
// kept as their source had them: images share them, they can be saved, and a
// damaged disk is made of them again. Layers of archives are not: the archive
// is there.

const (
	parallelLayers = 4                  // downloads at once
	partialAge     = 7 * 24 * time.Hour // after which nobody comes back for half a blob
	layersName     = "layers.json"
)

// Layer is one layer of an image, as the cache has it.
type Layer struct {
	Digest    string `json:"digest"` // "sha256:…" of its bytes, perhaps compressed
	Size      int64  `json:"size"`   // of its bytes
	MediaType string `json:"media_type"`
}

// sizeOf is the bytes of all layers together.
func sizeOf(layers []Layer) int64 {
	var total int64
	for _, l := range layers {
		total += l.Size
	}
	return total
}

// layerList is layers.json of an entry.
type layerList struct {
	Schema int     `json:"schema"`
	Layers []Layer `json:"layers"` // lowest first
}

func (s *Store) blob(digest string) string    { return s.join("blobs", hexOf(digest)) }
func (s *Store) partial(digest string) string { return s.join("partial", hexOf(digest)) }
func (s *Store) blobLock(digest string) string {
	return s.join("locks", "blob-"+hexOf(digest))
}

// useBlobs keeps all blobs until the file that it returns is closed. Who
// fetches an image needs that, for nothing says yet which blobs are its.
func (s *Store) useBlobs(ctx context.Context) (*os.File, error) {
	for {
		f, err := s.lockBlobs(unix.LOCK_SH)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		select { // somebody collects them: that is done in a moment
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

func (s *Store) lockBlobs(how int) (*os.File, error) {
	f, err := os.OpenFile(s.join("blobs.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// hasBlob reports whether a blob is there. Its content is checked when it is
// read: by the digest of what is in it, or by Verify.
func (s *Store) hasBlob(digest string, size int64) bool {
	st, err := os.Stat(s.blob(digest))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// keptLayers returns the layers of an image that the cache keeps; none if it
// keeps only the disk.
func (s *Store) keptLayers(digest string) []Layer {
	var list layerList
	if err := readJSON(filepath.Join(s.entry(digest), layersName), &list); err != nil || list.Schema != recordSchema {
		return nil
	}
	for _, l := range list.Layers {
		if !isDigest(l.Digest) || l.Size < 0 {
			return nil
		}
	}
	return list.Layers
}

// fetch makes sure that all layers are in the cache, and returns them as it
// keeps them. The caller has called useBlobs.
func (s *Store) fetch(ctx context.Context, c *content, p progress.Reporter) ([]Layer, error) {
	out := make([]Layer, len(c.layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	fetching := map[string]bool{} // an image may have a layer twice
	for i, b := range c.layers {
		out[i] = Layer{Digest: b.digest, Size: b.size, MediaType: b.mediaType}
		switch {
		case b.digest == "": // known only when it has been read
			g.Go(func() (err error) {
				out[i].Digest, err = s.copyBlob(ctx, b, p)
				return err
			})
		case !fetching[b.digest]:
			fetching[b.digest] = true
			g.Go(func() error { return s.fetchBlob(ctx, b, p) })
		}
	}
	return out, g.Wait()
}

// fetchBlob makes sure that a blob is in the cache. Of several that want it
// one gets it and the others wait.
func (s *Store) fetchBlob(ctx context.Context, b blob, p progress.Reporter) error {
	if s.hasBlob(b.digest, b.size) {
		return nil
	}
	l, err := takeLock(ctx, s.blobLock(b.digest), nil)
	if err != nil {
		return err
	}
	defer l.release()
	if s.hasBlob(b.digest, b.size) {
		return nil
	}
	part := s.partial(b.digest)
	if err := download(ctx, b, part, p); err != nil {
		return fmt.Errorf("layer %s: %w", short(b.digest), err)
	}
	return os.Rename(part, s.blob(b.digest))
}

// copyBlob puts a blob into the cache whose digest its source does not say.
func (s *Store) copyBlob(ctx context.Context, b blob, p progress.Reporter) (digest string, err error) {
	task := p.Task("copy layer", b.size)
	defer func() { task.Done(err) }()
	r, err := b.open(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Close() }()
	f, err := os.CreateTemp(s.join("partial"), "copy-*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	sum := sha256.New()
	_, err = io.Copy(ctxWriter{ctx, io.MultiWriter(f, sum, taskWriter{task})}, r)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return digest, os.Rename(f.Name(), s.blob(digest))
}

// dropDamaged removes those of the layers' blobs whose bytes are not what
// their digests say, and returns them.
func (s *Store) dropDamaged(ctx context.Context, layers []Layer, read func(int64)) ([]Layer, error) {
	var bad []Layer
	for _, l := range layers {
		sum, err := sumFile(ctx, s.blob(l.Digest), read)
		switch {
		case err == nil && sum == l.Digest:
			continue
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return bad, err
		}
		if err := os.Remove(s.blob(l.Digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return bad, err
		}
		bad = append(bad, l)
	}
	return bad, nil
}

// sumFile returns the SHA-256 digest of a file.
func sumFile(ctx context.Context, path string, read func(int64)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(ctxWriter{ctx, countingWriter{sum, read}}, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// Unreferenced is what the cache holds of no image: halves of downloads, and
// layers of images that are gone.
type Unreferenced struct {
	Files []string
	Size  int64 // bytes
}

// Unreferenced lists what Collect would remove, if nobody uses it.
func (s *Store) Unreferenced() (Unreferenced, error) {
	var u Unreferenced
	err := s.eachUnreferenced(func(path string, info fs.FileInfo) error {
		u.Files = append(u.Files, path)
		u.Size += info.Size()
		return nil
	})
	return u, err
}

// Collect removes layers that no image of the cache has, and halves of
// downloads: all of them, or those that are older than a week. It does nothing
// and reports false while an image is being fetched.
func (s *Store) Collect(all bool) (bool, error) {
	l, err := s.lockBlobs(unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove layers: %w", err)
	}
	defer func() { _ = l.Close() }()
	err = s.eachUnreferenced(func(path string, info fs.FileInfo) error {
		if !all && filepath.Base(filepath.Dir(path)) == "partial" && time.Since(info.ModTime()) < partialAge {
			return nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove layers: %w", err)
		}
		return nil
	})
	return err == nil, err
}

func (s *Store) eachUnreferenced(f func(path string, info fs.FileInfo) error) error {
	used, err := s.blobUsers()
	if err != nil {
		return err
	}
	for _, dir := range []string{"blobs", "partial"} {
		list, err := os.ReadDir(s.join(dir))
		if err != nil {
			return fmt.Errorf("list layers: %w", err)
		}
		for _, e := range list {
			if dir == "blobs" && used["sha256:"+e.Name()] > 0 {
				continue
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = f(s.join(dir, e.Name()), info)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// blobUsers counts for each blob the images that have it as a layer.
func (s *Store) blobUsers() (map[string]int, error) {
	dirs, err := os.ReadDir(s.join("disks"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	users := map[string]int{}
	for _, d := range dirs {
		digest := "sha256:" + d.Name()
		if !isDigest(digest) {
			continue
		}
		seen := map[string]bool{}
		for _, l := range s.keptLayers(digest) {
			if !seen[l.Digest] {
				seen[l.Digest] = true
				users[l.Digest]++
			}
		}
	}
	return users, nil
}

type countingWriter struct {
	io.Writer
	count func(int64)
}

func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if w.count != nil {
		w.count(int64(n))
	}
	return n, err
}

// short is a digest as people see it.
func short(digest string) string { return strings.TrimPrefix(digest, "sha256:")[:12] }
