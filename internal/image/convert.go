package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

const (
	parallelLayers = 4 // downloads at once
	downloadTries  = 3 // of one layer, when the connection breaks
)

// obtain returns the image from the cache, or puts it there. Of several
// processes that want the same image one works and the others wait.
func (s *Store) obtain(ctx context.Context, c *content, r reference, want platform, o EnsureOptions) (Image, error) {
	if rec, img, err := s.lookup(c.id); err == nil {
		return img, checkPlatform(want, rec.Platform)
	}
	l, err := takeLock(ctx, s.lockFor(c.id), func() {
		o.Progress.Note("waiting for another fcvm that is converting " + r.text)
	})
	if err != nil {
		return Image{}, s.diskError(err)
	}
	defer l.release()
	if rec, img, err := s.lookup(c.id); err == nil {
		return img, checkPlatform(want, rec.Platform)
	}
	work := s.workFor(c.id)
	if err := os.RemoveAll(work); err != nil { // of one that was killed
		return Image{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := s.convert(ctx, c, r, want, o.Progress, work); err != nil {
		return Image{}, s.diskError(err)
	}
	_, img, err := s.lookup(c.id)
	img.Cached = false
	return img, err
}

func checkPlatform(want platform, have string) error {
	has, err := parsePlatform(have)
	if err != nil {
		return err
	}
	if !want.runs(has) {
		return wrongPlatform(want, have)
	}
	return nil
}

// convert makes the image's disk and record in work and moves them into the
// cache, both at once.
func (s *Store) convert(ctx context.Context, c *content, r reference, want platform, p progress.Reporter, work string) error {
	cf, err := checkedConfig(ctx, c, want)
	if err != nil {
		return err
	}
	made := filepath.Join(work, "made")
	if err := os.MkdirAll(made, 0o700); err != nil {
		return err
	}
	layers, total, err := s.layers(ctx, c, cf, p, work)
	if err != nil {
		return err
	}
	size, err := s.build(ctx, layers, total, r, p, filepath.Join(made, diskName))
	if err != nil {
		return err
	}
	rec := record{
		Schema: recordSchema, Digest: c.id, Reference: r.text, Platform: cf.platform.String(),
		Created: time.Now().UTC(), Size: size, Config: cf.config,
	}
	if err := s.writeJSON(filepath.Join(made, recordName), rec); err != nil {
		return err
	}
	// A disk of another size than its record's makes way.
	if err := os.RemoveAll(s.entry(c.id)); err != nil {
		return err
	}
	return os.Rename(made, s.entry(c.id))
}

// checkedConfig returns an image's configuration, when it is what its digest
// says and the image is for the platform that is wanted.
func checkedConfig(ctx context.Context, c *content, want platform) (configFile, error) {
	raw, err := c.config(ctx)
	if err != nil {
		return configFile{}, err
	}
	if got := digestOf(raw); got != c.id {
		return configFile{}, fmt.Errorf("%w: its configuration has digest %s, not %s", ErrCorrupt, got, c.id)
	}
	cf, err := parseConfig(raw, len(c.layers))
	if err != nil {
		return configFile{}, err
	}
	if !want.runs(cf.platform) {
		return configFile{}, wrongPlatform(want, cf.platform.String())
	}
	if cf.platform.os == "" || cf.platform.arch == "" { // it does not say
		cf.platform = want
	}
	return cf, nil
}

// build writes the disk and returns its size.
func (s *Store) build(ctx context.Context, layers []rootfs.Layer, total int64, r reference, p progress.Reporter, disk string) (size int64, err error) {
	task := p.Task("convert "+r.text, 2*total) // layers are read twice
	defer func() { task.Done(err) }()
	f, err := os.OpenFile(disk, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	o := rootfs.Options{Limits: s.limits().Rootfs, Prefix: agentapi.ImageRoot, Progress: task.Add}
	if _, err := rootfs.BuildImage(ctx, layers, f, o); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// layers returns the image's layers as files that can be read twice, and the
// sum of their sizes. What lies in a registry is downloaded to work.
func (s *Store) layers(ctx context.Context, c *content, cf configFile, p progress.Reporter, work string) ([]rootfs.Layer, int64, error) {
	var total int64
	remote := map[string]blob{} // an image may have a layer twice
	out := make([]rootfs.Layer, len(c.layers))
	for i, b := range c.layers {
		total += b.size
		if limit := s.limits().Rootfs.Bytes; total < 0 || total > limit {
			return nil, 0, fmt.Errorf("%w: over %d MiB of layers", ErrTooLarge, limit>>20)
		}
		name := b.digest
		if name == "" {
			name = cf.diffIDs[i]
		}
		out[i] = rootfs.Layer{Name: short(name), DiffID: cf.diffIDs[i]}
		if b.local {
			out[i].Open = func() (io.ReadCloser, error) { return b.open(ctx) }
			continue
		}
		file := filepath.Join(work, hexOf(b.digest))
		remote[file] = b
		out[i].Open = func() (io.ReadCloser, error) { return os.Open(file) }
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for file, b := range remote {
		g.Go(func() error { return download(ctx, b, file, p) })
	}
	return out, total, g.Wait()
}

// short is a digest as people see it.
func short(digest string) string { return hexOf(digest)[:12] }

// download stores a blob in a file and checks it.
func download(ctx context.Context, b blob, file string, p progress.Reporter) (err error) {
	task := p.Task("layer "+short(b.digest), b.size)
	defer func() { task.Done(err) }()
	for try := 1; ; try++ {
		err = downloadOnce(ctx, b, file, task)
		if err == nil || try == downloadTries || !errors.Is(err, errBroken) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", short(b.digest), err)
	}
	return nil
}

// errBroken: a download ended early; another try may help.
var errBroken = errors.New("the connection broke")

func downloadOnce(ctx context.Context, b blob, file string, task progress.Task) (err error) {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	sum := sha256.New()
	in := &failReader{r: io.LimitReader(r, b.size+1)}
	n, err := io.Copy(io.MultiWriter(f, sum, taskWriter{task}), in)
	got := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	switch {
	case n == b.size && got == b.digest:
		return nil
	case n >= b.size:
		return fmt.Errorf("%w: what the registry sent is not what its digest says (%d bytes, the manifest says %d)", ErrCorrupt, n, b.size)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && in.err == nil: // writing failed
		return err
	}
	task.Add(-n) // it starts over
	return fmt.Errorf("%w: %w after %d of %d bytes: try again", ErrRegistry, errBroken, n, b.size)
}

// failReader remembers the error of its reader, to tell it from a writer's.
type failReader struct {
	r   io.Reader
	err error
}

func (f *failReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

type taskWriter struct{ progress.Task }

func (w taskWriter) Write(p []byte) (int, error) {
	w.Add(int64(len(p)))
	return len(p), nil
}
