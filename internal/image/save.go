package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// Format is the form of an archive.
type Format string

// The formats that Save writes.
const (
	// FormatDocker is what docker save writes since Docker 25: layers without
	// compression, a manifest.json for docker load and podman load, and an OCI
	// layout around them.
	FormatDocker Format = "docker-archive"
	// FormatOCI is an OCI layout in a tar, with the layers as they came.
	FormatOCI Format = "oci-archive"
)

// Saving is an image that is to be saved, and the names it is to have in the
// archive.
type Saving struct {
	Digest string
	Names  []string // in full
}

// Save writes images to an archive. What does not come from the cache is read
// where it came from. The same images make the same bytes, for the same user.
func (s *Store) Save(ctx context.Context, w io.Writer, images []Saving, format Format, p progress.Reporter) error {
	a := &archiveWriter{s: s, tar: tar.NewWriter(w), progress: p, format: format, done: map[string]bool{}}
	if err := a.directories(); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	for _, img := range images {
		if err := a.add(ctx, img); err != nil {
			return fmt.Errorf("save image %s: %w", short(img.Digest), err)
		}
	}
	if err := a.finish(); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

// archiveWriter writes one archive.
type archiveWriter struct {
	s        *Store
	tar      *tar.Writer
	progress progress.Reporter
	format   Format
	done     map[string]bool // blobs that are in it, by digest
	index    []v1.Descriptor
	docker   []dockerImage
}

func (a *archiveWriter) add(ctx context.Context, img Saving) error {
	held := Image{Digest: img.Digest}
	if err := a.s.hold(&held); err != nil {
		return err
	}
	defer held.Release()
	c, err := a.s.findCached(ctx, img.Digest)
	if err != nil {
		return err
	}
	defer c.close()
	raw, err := c.config(ctx)
	if err != nil {
		return err
	}
	cf, err := parseConfig(raw, len(c.layers))
	if err != nil {
		return err
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(raw)), Digest: hashOf(img.Digest)},
		Layers: []v1.Descriptor{},
	}
	entry := dockerImage{Config: blobPath(img.Digest), RepoTags: img.Names, Layers: []string{}}
	for i, b := range c.layers {
		d, err := a.layer(ctx, b, cf.diffIDs[i])
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
		entry.Layers = append(entry.Layers, blobPath(d.Digest.String()))
	}
	if err := a.small(raw, img.Digest); err != nil {
		return err
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return err
	}
	digest := digestOf(manifest)
	if err := a.small(manifest, digest); err != nil {
		return err
	}
	a.docker = append(a.docker, entry)
	a.describe(v1.Descriptor{MediaType: m.MediaType, Size: int64(len(manifest)), Digest: hashOf(digest)}, cf.platform, img.Names)
	return nil
}

// describe lists a manifest in the index, once for each name. One without a name
// has no platform there either: several that have would be one image.
func (a *archiveWriter) describe(d v1.Descriptor, p platform, names []string) {
	if len(names) == 0 {
		a.index = append(a.index, d)
	}
	if p.os != "" && p.arch != "" { // its configuration says it
		d.Platform = &v1.Platform{OS: p.os, Architecture: p.arch, Variant: p.variant}
	}
	for _, n := range names {
		d.Annotations = map[string]string{annotationName: n, annotationRef: n}
		if a.format == FormatDocker { // as Docker has it: there the reference is the tag alone
			d.Annotations[annotationRef] = n[strings.LastIndexByte(n, ':')+1:]
		}
		a.index = append(a.index, d)
	}
}

// layer writes one layer, without its compression for a Docker archive.
func (a *archiveWriter) layer(ctx context.Context, b blob, diffID string) (v1.Descriptor, error) {
	l := rootfs.Layer{Name: short(diffID), DiffID: diffID, Open: func() (io.ReadCloser, error) { return b.open(ctx) }}
	if a.format == FormatOCI && b.digest != "" {
		return a.compressedLayer(ctx, b)
	}
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: hashOf(diffID)}
	// A tar says how long a member is before its bytes.
	size, err := rootfs.Uncompress(ctx, l, io.Discard)
	if err != nil {
		return d, err
	}
	d.Size = size
	if a.done[diffID] {
		return d, nil
	}
	task := a.progress.Task("save layer "+short(diffID), size)
	err = a.member(diffID, size)
	if err == nil {
		_, err = rootfs.Uncompress(ctx, l, io.MultiWriter(a.tar, taskWriter{task}))
	}
	task.Done(err)
	return d, err
}

// compressedLayer writes a layer as it is. Its digest is checked on the way.
func (a *archiveWriter) compressedLayer(ctx context.Context, b blob) (_ v1.Descriptor, err error) {
	d := v1.Descriptor{Size: b.size, Digest: hashOf(b.digest)}
	r, err := b.open(ctx)
	if err != nil {
		return d, err
	}
	defer func() { _ = r.Close() }()
	br := bufio.NewReader(r)
	if d.MediaType, err = layerType(br); err != nil || a.done[b.digest] {
		return d, err
	}
	task := a.progress.Task("save layer "+short(b.digest), b.size)
	defer func() { task.Done(err) }()
	if err := a.member(b.digest, b.size); err != nil {
		return d, err
	}
	sum := sha256.New()
	n, err := io.Copy(ctxWriter{ctx, io.MultiWriter(a.tar, sum, taskWriter{task})}, io.LimitReader(br, b.size))
	if err != nil {
		return d, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); n != b.size || got != b.digest {
		return d, fmt.Errorf("%w: layer %s is damaged in the cache: heal it with: fcvm image verify", ErrCorrupt, short(b.digest))
	}
	return d, nil
}

// layerType is the media type of a layer, by how it begins: where it comes from
// may have it wrong, or not say it.
func layerType(br *bufio.Reader) (types.MediaType, error) {
	head, err := br.Peek(4)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return "", err
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return types.OCILayer, nil
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return types.OCILayerZStd, nil
	}
	return types.OCIUncompressedLayer, nil
}

func (a *archiveWriter) small(b []byte, digest string) error {
	if a.done[digest] {
		return nil
	}
	if err := a.member(digest, int64(len(b))); err != nil {
		return err
	}
	_, err := a.tar.Write(b)
	return err
}

func (a *archiveWriter) member(digest string, size int64) error {
	a.done[digest] = true
	return a.header(blobPath(digest), size)
}

func (a *archiveWriter) header(name string, size int64) error {
	return a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, Uid: os.Geteuid(), Gid: os.Getegid(), Format: tar.FormatPAX,
	})
}

// directories are those of the blobs. Skopeo makes what is missing for root, and
// what is there for its owner: for other users both must be them.
func (a *archiveWriter) directories() error {
	for _, name := range []string{"blobs/", "blobs/sha256/"} {
		err := a.tar.WriteHeader(&tar.Header{
			Typeflag: tar.TypeDir, Name: name, Mode: 0o755, Uid: os.Geteuid(), Gid: os.Getegid(), Format: tar.FormatPAX,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// finish writes what says what is in the archive.
func (a *archiveWriter) finish() error {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: a.index}
	parts := []struct {
		name  string
		value any
	}{
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{ociIndex, index},
		{dockerManifest, a.docker},
	}
	if a.format == FormatOCI {
		parts = parts[:2]
	}
	for _, part := range parts {
		var b bytes.Buffer
		if err := json.NewEncoder(&b).Encode(part.value); err != nil {
			return err
		}
		if err := a.header(part.name, int64(b.Len())); err != nil {
			return err
		}
		if _, err := a.tar.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return a.tar.Close()
}

func blobPath(digest string) string { return path.Join("blobs", "sha256", hexOf(digest)) }

// hashOf is for digests that isDigest accepts.
func hashOf(digest string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hexOf(digest)} }
