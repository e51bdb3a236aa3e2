package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Names in an OCI layout and in a Docker archive:
// https://github.com/opencontainers/image-spec/blob/main/image-layout.md
// https://github.com/moby/docker-image-spec/blob/main/spec.md
const (
	ociIndex       = "index.json"
	dockerManifest = "manifest.json"

	annotationRef  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// findFile finds an image in an archive or directory.
func (s *Store) findFile(ctx context.Context, r reference, want platform) (*content, error) {
	fsys, err := s.openFiles(ctx, r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: there is no file or directory %s", ErrNotFound, r.path)
	case err != nil:
		return nil, s.diskError(err)
	}
	find := findOCI
	if r.kind == kindDockerArchive {
		find = findDocker
	}
	c, err := find(ctx, fsys, r, want, s.limits())
	if err != nil {
		fsys.close()
		return nil, err
	}
	return c, nil
}

func (s *Store) openFiles(ctx context.Context, r reference) (files, error) {
	if r.kind == kindOCIDir {
		return openDir(r.path)
	}
	return openTar(ctx, r.path, s.work(), s.limits().Rootfs.Bytes)
}

// readMember reads a small file of an archive whole.
func readMember(fsys files, name string, limit int64) ([]byte, error) {
	f, _, err := fsys.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := readBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// ociBlobs is the blobs of an OCI layout.
type ociBlobs struct{ files }

func blobName(digest v1.Hash) string { return path.Join("blobs", digest.Algorithm, digest.Hex) }

func (l ociBlobs) read(_ context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	f, _, err := l.open(blobName(d.Digest))
	if err != nil {
		return nil, missing(err, d.Digest.String())
	}
	defer func() { _ = f.Close() }()
	return readAll(f, d, limit)
}

func (l ociBlobs) layer(d v1.Descriptor) blob {
	return blob{digest: d.Digest.String(), size: d.Size, mediaType: string(d.MediaType), local: true, open: func(context.Context) (io.ReadCloser, error) {
		f, size, err := l.open(blobName(d.Digest))
		if err != nil {
			return nil, missing(err, d.Digest.String())
		}
		if size != d.Size {
			_ = f.Close()
			return nil, fmt.Errorf("%w: blob %s has %d bytes, the manifest says %d", ErrCorrupt, d.Digest, size, d.Size)
		}
		return f, nil
	}}
}

func missing(err error, what string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing from it", ErrCorrupt, what)
	}
	return err
}

// findOCI finds an image in an OCI layout.
func findOCI(ctx context.Context, fsys files, r reference, want platform, lim Limits) (*content, error) {
	raw, err := readMember(fsys, ociIndex, lim.Manifest)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := readMember(fsys, dockerManifest, lim.Manifest); err == nil && r.kind == kindOCIArchive {
			return nil, fmt.Errorf("%w: %s is a Docker archive: use docker-archive:%s", ErrReference, r.path, r.path)
		}
		return nil, fmt.Errorf("%w: %s has no %s: it is no OCI image", ErrCorrupt, r.path, ociIndex)
	}
	if err != nil {
		return nil, err
	}
	idx, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read: %w", ErrCorrupt, ociIndex, err)
	}
	if idx.Manifests, err = byName(idx.Manifests, r); err != nil {
		return nil, err
	}
	if raw, err = json.Marshal(idx); err != nil {
		return nil, err
	}
	return resolve(ctx, ociBlobs{fsys}, types.OCIImageIndex, raw, want, lim)
}

// byName keeps the entries of a layout's index that the reference means. One
// image for several platforms may be several entries.
func byName(list []v1.Descriptor, r reference) ([]v1.Descriptor, error) {
	var found []v1.Descriptor
	var names []string
	for _, d := range list {
		own := []string{d.Annotations[annotationRef], d.Annotations[annotationName]}
		own = slices.DeleteFunc(own, func(s string) bool { return s == "" })
		if r.tag == "" || slices.ContainsFunc(own, func(s string) bool { return sameName(s, r.tag) }) {
			found = append(found, d)
		}
		if len(own) > 0 && !slices.Contains(names, own[0]) {
			names = append(names, own[0])
		}
	}
	switch {
	case len(found) == 0 && r.tag != "":
		return nil, noSuchMember(r, names)
	case len(found) == 0:
		return nil, fmt.Errorf("%w: %s holds no image", ErrNotFound, r.path)
	case r.tag == "" && len(names) > 1:
		return nil, severalMembers(r, names)
	case len(found) > 1 && !slices.ContainsFunc(found, func(d v1.Descriptor) bool { return platformOf(d.Platform) != platform{} }):
		return nil, fmt.Errorf("%w: %s holds %d images that nothing tells apart: take them all with: fcvm image load", ErrReference, r.path, len(found))
	}
	return found, nil
}

func noSuchMember(r reference, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("%w: %s has no image named %q, only one without a name", ErrNotFound, r.path, r.tag)
	}
	return fmt.Errorf("%w: %s has no image named %q, only %s", ErrNotFound, r.path, r.tag, strings.Join(names, ", "))
}

func severalMembers(r reference, names []string) error {
	return fmt.Errorf("%w: %s holds several images, say which: %s:NAME with one of %s", ErrReference, r.path, r.text, strings.Join(names, ", "))
}

// sameName compares names with Docker's defaults filled in.
func sameName(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := name.ParseReference(a)
	y, errY := name.ParseReference(b)
	return errX == nil && errY == nil && x.Name() == y.Name()
}

// dockerImage is an element of a Docker archive's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// findDocker finds an image in an archive that docker save or podman save made.
func findDocker(_ context.Context, fsys files, r reference, _ platform, lim Limits) (*content, error) {
	raw, err := readMember(fsys, dockerManifest, lim.Manifest)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := readMember(fsys, ociIndex, lim.Manifest); err == nil {
			return nil, fmt.Errorf("%w: %s is an OCI archive: use oci-archive:%s", ErrReference, r.path, r.path)
		}
		return nil, fmt.Errorf("%w: %s has no %s: it is no Docker archive", ErrCorrupt, r.path, dockerManifest)
	}
	if err != nil {
		return nil, err
	}
	var list []dockerImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read: %w", ErrCorrupt, dockerManifest, err)
	}
	img, err := dockerByName(list, r)
	if err != nil {
		return nil, err
	}
	return dockerContent(fsys, img, lim)
}

// dockerContent is one image of a Docker archive.
func dockerContent(fsys files, img dockerImage, lim Limits) (*content, error) {
	if len(img.Layers) > lim.Layers {
		return nil, fmt.Errorf("%w: %d layers, the limit is %d", ErrTooLarge, len(img.Layers), lim.Layers)
	}
	config, err := readMember(fsys, img.Config, lim.Config)
	if err != nil {
		return nil, missing(err, "configuration "+img.Config)
	}
	c := &content{id: digestOf(config), close: fsys.close}
	// The configuration's file is named after its digest.
	if said := "sha256:" + strings.TrimSuffix(path.Base(img.Config), ".json"); isDigest(said) && said != c.id {
		return nil, fmt.Errorf("%w: configuration %s has digest %s", ErrCorrupt, img.Config, c.id)
	}
	c.config = func(context.Context) ([]byte, error) { return config, nil }
	for _, l := range img.Layers {
		f, size, err := fsys.open(l)
		if err != nil {
			return nil, missing(err, "layer "+l)
		}
		kind, err := layerType(bufio.NewReaderSize(f, 16))
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		c.layers = append(c.layers, blob{size: size, mediaType: string(kind), local: true, open: func(context.Context) (io.ReadCloser, error) {
			f, _, err := fsys.open(l)
			return f, err
		}})
	}
	return c, nil
}

func dockerByName(list []dockerImage, r reference) (dockerImage, error) {
	if r.tag == "" && len(list) == 1 {
		return list[0], nil
	}
	var names []string
	for _, img := range list {
		for _, t := range img.RepoTags {
			if r.tag != "" && sameName(t, r.tag) {
				return img, nil
			}
			names = append(names, t)
		}
	}
	switch {
	case len(list) == 0:
		return dockerImage{}, fmt.Errorf("%w: %s holds no image", ErrNotFound, r.path)
	case r.tag != "":
		return dockerImage{}, noSuchMember(r, names)
	}
	return dockerImage{}, severalMembers(r, names)
}
