package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// obtain returns the image from the cache, or puts it there: its disk, and
// with c.keep its layers. Of several processes that want the same image one
// works and the others wait.
func (s *Store) obtain(ctx context.Context, c *content, r reference, want platform, o EnsureOptions) (Image, error) {
	if rec, img, err := s.lookup(c.id); err == nil && !c.again && s.hasAll(c) {
		return img, checkPlatform(want, rec.Platform)
	}
	l, err := takeLock(ctx, s.lockFor(c.id), func() {
		o.Progress.Note("waiting for another fcvm that is converting " + r.text)
	})
	if err != nil {
		return Image{}, s.diskError(err)
	}
	defer l.release()
	rec, img, err := s.lookup(c.id)
	if err == nil && c.again {
		if err := s.dropDamage(ctx, c.id, o.Progress); err != nil {
			return Image{}, s.diskError(err)
		}
	}
	if err == nil && s.hasAll(c) {
		return img, checkPlatform(want, rec.Platform)
	}
	work := s.workFor(c.id)
	if err := os.RemoveAll(work); err != nil { // of one that was killed
		return Image{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	blobs, berr := s.useBlobs(ctx)
	if berr != nil {
		return Image{}, s.diskError(berr)
	}
	defer func() { _ = blobs.Close() }()
	if err == nil { // the disk is there, made of a source that keeps its layers itself
		return img, s.diskError(s.keep(ctx, c, r, want, o.Progress))
	}
	if err := s.convert(ctx, c, r, want, o.Progress, work); err != nil {
		return Image{}, s.diskError(err)
	}
	_, img, err = s.lookup(c.id)
	img.Cached = false
	return img, err
}

// hasAll reports whether an image that has a disk has its configuration and
// all its layers, if they are to be kept.
func (s *Store) hasAll(c *content) bool {
	if !c.keep {
		return true
	}
	kept := s.keptLayers(c.id)
	for _, l := range kept {
		if !s.hasBlob(l.Digest, l.Size) {
			return false
		}
	}
	_, err := os.Stat(filepath.Join(s.entry(c.id), configName))
	return err == nil && len(kept) == len(c.layers)
}

// dropDamage removes those layers of an image, and its configuration, that are
// not what their digests say.
func (s *Store) dropDamage(ctx context.Context, id string, p progress.Reporter) (err error) {
	layers := s.keptLayers(id)
	if len(layers) == 0 {
		return nil
	}
	task := p.Task("check "+short(id), sizeOf(layers))
	defer func() { task.Done(err) }()
	bad, err := s.dropDamaged(ctx, layers, task.Add)
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		p.Note(fmt.Sprintf("%d layers of %s were damaged in the cache: they are replaced", len(bad), short(id)))
	}
	if _, err := s.keptConfig(id); errors.Is(err, ErrCorrupt) {
		return os.Remove(filepath.Join(s.entry(id), configName))
	}
	return nil
}

// keep puts the layers of an image beside its disk.
func (s *Store) keep(ctx context.Context, c *content, r reference, want platform, p progress.Reporter) error {
	cf, err := checkedConfig(ctx, c, want)
	if err != nil {
		return err
	}
	layers, kept, err := s.layers(ctx, c, cf, p)
	if err != nil {
		return err
	}
	err = checkLayers(ctx, layers, p)
	if errors.Is(err, ErrCorrupt) {
		if layers, kept, err = s.layersAgain(ctx, c, cf, r, p, err); err == nil {
			err = checkLayers(ctx, layers, p)
		}
	}
	if err != nil {
		return err
	}
	if err := s.writeConfig(s.entry(c.id), cf.raw); err != nil {
		return err
	}
	return s.writeJSON(filepath.Join(s.entry(c.id), layersName), layerList{Schema: recordSchema, Layers: kept})
}

// checkLayers reads layers to compare their content with the configuration's
// digests of it. Who makes a disk of them has that done on the way.
func checkLayers(ctx context.Context, layers []rootfs.Layer, p progress.Reporter) (err error) {
	task := p.Task("check layers", 0)
	defer func() { task.Done(err) }()
	for _, l := range layers {
		if _, err := rootfs.Uncompress(ctx, l, taskWriter{task}); err != nil {
			return err
		}
	}
	return nil
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

// convert makes the image's disk and records in work and moves them into the
// cache, all at once.
func (s *Store) convert(ctx context.Context, c *content, r reference, want platform, p progress.Reporter, work string) error {
	made, err := s.make(ctx, c, r, want, p, work)
	if err != nil {
		return err
	}
	return s.replace(made, c.id)
}

// replace puts a finished entry into its place. One that is there, whose disk
// has not the size of its record, makes way.
func (s *Store) replace(made, digest string) error {
	if err := os.RemoveAll(s.entry(digest)); err != nil {
		return err
	}
	return os.Rename(made, s.entry(digest))
}

// make makes the image's disk and records in a directory in work, which it
// returns.
func (s *Store) make(ctx context.Context, c *content, r reference, want platform, p progress.Reporter, work string) (string, error) {
	cf, err := checkedConfig(ctx, c, want)
	if err != nil {
		return "", err
	}
	made := filepath.Join(work, "made")
	if err := os.MkdirAll(made, 0o700); err != nil {
		return "", err
	}
	layers, kept, err := s.layers(ctx, c, cf, p)
	if err != nil {
		return "", err
	}
	disk := filepath.Join(made, diskName)
	size, err := s.build(ctx, layers, c.size(), r, p, disk)
	if errors.Is(err, ErrCorrupt) && c.keep {
		size, err = s.buildAgain(ctx, c, cf, r, p, disk, err)
	}
	if err != nil {
		return "", err
	}
	sum, err := sumDisk(ctx, disk, nil)
	if err != nil {
		return "", err
	}
	if c.keep {
		if err := s.writeJSON(filepath.Join(made, layersName), layerList{Schema: recordSchema, Layers: kept}); err != nil {
			return "", err
		}
	}
	rec := record{
		Schema: recordSchema, Digest: c.id, Reference: r.text, Platform: cf.platform.String(),
		Created: time.Now().UTC(), Size: size, Sum: sum, Config: cf.config,
	}
	return made, errors.Join(s.writeConfig(made, cf.raw), s.writeJSON(filepath.Join(made, recordName), rec))
}

// layersAgain fetches layers again that were in the cache already and have
// been damaged there. If there are none, cause is the error.
func (s *Store) layersAgain(ctx context.Context, c *content, cf configFile, r reference, p progress.Reporter, cause error) ([]rootfs.Layer, []Layer, error) {
	kept := make([]Layer, 0, len(c.layers))
	for _, b := range c.layers {
		if b.digest != "" {
			kept = append(kept, Layer{Digest: b.digest, Size: b.size})
		}
	}
	bad, err := s.dropDamaged(ctx, kept, nil)
	if err != nil || len(bad) == 0 {
		return nil, nil, errors.Join(cause, err)
	}
	p.Note(fmt.Sprintf("fetching %d layers of %s again: they were damaged in the cache", len(bad), r.text))
	return s.layers(ctx, c, cf, p)
}

// buildAgain makes the disk once more, of layers that were fetched again.
func (s *Store) buildAgain(ctx context.Context, c *content, cf configFile, r reference, p progress.Reporter, disk string, cause error) (int64, error) {
	layers, _, err := s.layersAgain(ctx, c, cf, r, p, cause)
	if err != nil {
		return 0, err
	}
	if err := os.Remove(disk); err != nil {
		return 0, err
	}
	return s.build(ctx, layers, c.size(), r, p, disk)
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
	cf.raw = raw
	return cf, nil
}

// build writes the disk and returns its size.
func (s *Store) build(ctx context.Context, layers []rootfs.Layer, total int64, r reference, p progress.Reporter, disk string) (size int64, err error) {
	defer s.frugal()()
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

// convertGC is the garbage collector's percentage (GOGC) during a conversion. A
// tree of a hundred thousand files stays in memory for its whole length: with
// the usual 100 its size would be needed twice over.
const convertGC = 40

// frugal saves memory until the function that it returns is called.
func (s *Store) frugal() (done func()) {
	s.gc.Lock()
	defer s.gc.Unlock()
	if s.gc.conversions++; s.gc.conversions == 1 {
		s.gc.usual = debug.SetGCPercent(convertGC)
	}
	return func() {
		s.gc.Lock()
		defer s.gc.Unlock()
		if s.gc.conversions--; s.gc.conversions == 0 {
			debug.SetGCPercent(s.gc.usual)
		}
	}
}

// layers returns the image's layers as files that can be read twice. Those
// that are kept are fetched first; useBlobs must have been called.
func (s *Store) layers(ctx context.Context, c *content, cf configFile, p progress.Reporter) ([]rootfs.Layer, []Layer, error) {
	if limit, size := s.limits().Rootfs.Bytes, c.size(); size < 0 || size > limit {
		return nil, nil, fmt.Errorf("%w: over %d MiB of layers", ErrTooLarge, limit>>20)
	}
	var kept []Layer
	if c.keep {
		var err error
		if kept, err = s.fetch(ctx, c, p); err != nil {
			return nil, nil, err
		}
	}
	out := make([]rootfs.Layer, len(c.layers))
	for i, b := range c.layers {
		name := b.digest
		if name == "" {
			name = cf.diffIDs[i]
		}
		out[i] = rootfs.Layer{Name: short(name), DiffID: cf.diffIDs[i]}
		if c.keep {
			out[i].Open = func() (io.ReadCloser, error) { return os.Open(s.blob(kept[i].Digest)) }
		} else {
			out[i].Open = func() (io.ReadCloser, error) { return b.open(ctx) }
		}
	}
	return out, kept, nil
}
