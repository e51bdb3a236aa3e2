package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// member is one image of an archive, with the names that it has there.
type member struct {
	c     *content
	names []name.Reference
	err   error // that it is for another platform; nothing else is known of it then
}

// maxMembers bounds the images of one archive.
const maxMembers = 1000

// members returns all images of an archive or layout, of whatever form.
func members(ctx context.Context, fsys files, want platform, lim Limits) ([]member, error) {
	raw, err := readMember(fsys, dockerManifest, lim.Manifest)
	switch {
	case err == nil:
		return dockerMembers(fsys, raw, lim)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	raw, err = readMember(fsys, ociIndex, lim.Manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has neither %s nor %s: it is no image archive; a root file system is taken by: fcvm image import", ErrCorrupt, dockerManifest, ociIndex)
	}
	if err != nil {
		return nil, err
	}
	return ociMembers(ctx, fsys, raw, want, lim)
}

func dockerMembers(fsys files, raw []byte, lim Limits) ([]member, error) {
	var list []dockerImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read: %w", ErrCorrupt, dockerManifest, err)
	}
	if len(list) > maxMembers {
		return nil, fmt.Errorf("%w: %d images", ErrTooLarge, len(list))
	}
	var out []member
	for _, img := range list {
		c, err := dockerContent(fsys, img, lim)
		if err != nil {
			return nil, err
		}
		m := member{c: c}
		for _, t := range img.RepoTags {
			if n, err := name.ParseReference(t); err == nil {
				m.names = append(m.names, n)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// ociMembers takes what has the same name for one image on several platforms,
// and so what has none, as far as the platforms differ.
func ociMembers(ctx context.Context, fsys files, raw []byte, want platform, lim Limits) ([]member, error) {
	idx, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read: %w", ErrCorrupt, ociIndex, err)
	}
	if len(idx.Manifests) > maxMembers {
		return nil, fmt.Errorf("%w: %d images", ErrTooLarge, len(idx.Manifests))
	}
	groups := map[string][]v1.Descriptor{}
	nameless := map[platform]bool{}
	var order []string
	for i, d := range idx.Manifests {
		key := layoutName(d)
		if p := platformOf(d.Platform); key == "" && p.os != "unknown" { // that is an attestation
			if nameless[p] || p == (platform{}) { // it is an image of its own
				key = fmt.Sprintf("#%d", i)
			}
			nameless[p] = true
		}
		if _, ok := groups[key]; !ok {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	byDigest := map[string]int{}
	var out []member
	for _, key := range order {
		sub := *idx
		sub.Manifests = groups[key]
		raw, err := json.Marshal(sub)
		if err != nil {
			return nil, err
		}
		c, err := resolve(ctx, ociBlobs{fsys}, types.OCIImageIndex, raw, want, lim)
		if errors.Is(err, ErrPlatform) {
			if key != "" && !strings.HasPrefix(key, "#") {
				err = fmt.Errorf("load image %s: %w", key, err)
			}
			out = append(out, member{err: err})
			continue
		}
		if err != nil {
			return nil, err
		}
		i, ok := byDigest[c.id]
		if !ok {
			i = len(out)
			byDigest[c.id] = i
			out = append(out, member{c: c})
		}
		if n, err := name.ParseReference(key); err == nil && key != "" && !strings.HasPrefix(key, "#") {
			out[i].names = append(out[i].names, n)
		}
	}
	return out, nil
}

// layoutName is the name that an entry of an index has, in full; empty if it
// has none, or only a tag.
func layoutName(d v1.Descriptor) string {
	if n := d.Annotations[annotationName]; n != "" {
		return n
	}
	if n := d.Annotations[annotationRef]; strings.ContainsAny(n, "/:") {
		return n
	}
	return ""
}

// isImageArchive reports whether files are an image rather than a root.
func isImageArchive(fsys files, lim Limits) bool {
	raw, err := readMember(fsys, dockerManifest, lim.Manifest)
	if err == nil {
		var list []dockerImage
		return json.Unmarshal(raw, &list) == nil && slices.ContainsFunc(list, func(d dockerImage) bool { return d.Config != "" })
	}
	if _, err := readMember(fsys, "oci-layout", lim.Manifest); err != nil {
		return false
	}
	_, err = readMember(fsys, ociIndex, lim.Manifest)
	return err == nil
}
