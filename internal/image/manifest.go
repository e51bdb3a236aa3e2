package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// Limits bound what is taken from an image. The zero value of a field stands
// for DefaultLimits'.
type Limits struct {
	Manifest int64 // bytes of an index or manifest
	Config   int64 // bytes of a configuration
	Layers   int   // of one image
	Rootfs   rootfs.Limits
}

// DefaultLimits is what registries and Docker keep themselves, and more.
var DefaultLimits = Limits{Manifest: 4 << 20, Config: 8 << 20, Layers: 500, Rootfs: rootfs.DefaultLimits}

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	if l.Manifest > 0 {
		d.Manifest = l.Manifest
	}
	if l.Config > 0 {
		d.Config = l.Config
	}
	if l.Layers > 0 {
		d.Layers = l.Layers
	}
	d.Rootfs = l.Rootfs // package rootfs fills in the rest
	if d.Rootfs.Bytes <= 0 {
		d.Rootfs.Bytes = rootfs.DefaultLimits.Bytes
	}
	return d
}

// content is an image that was found at its source: all that is known of it
// before its layers are read.
type content struct {
	id     string // digest of its configuration
	layers []blob // lowest first
	// config reads the configuration, which has the digest id.
	config func(context.Context) ([]byte, error)
	// keep says that the cache keeps the layers, too.
	keep bool
	// again says that somebody brings it, perhaps because what the cache has of
	// it is damaged: that is read, and replaced where need be.
	again bool
	// manifest is the digest of what the reference names in a registry, an
	// index or a manifest; empty elsewhere.
	manifest string
	// close lets the source go.
	close func()
}

// size is that of all layers together, as the source has them; negative where
// that is no number.
func (c *content) size() int64 {
	var total int64
	for _, b := range c.layers {
		if total += b.size; total < 0 {
			return -1
		}
	}
	return total
}

// blob is one layer as its source has it, perhaps compressed.
type blob struct {
	digest    string // "sha256:…" of its bytes; empty where the source does not say
	size      int64  // of its bytes
	mediaType string
	open      func(context.Context) (io.ReadCloser, error)
	// resume opens it at an offset; nil where that is not possible. The error
	// is errNoRange when this source cannot do it after all.
	resume func(ctx context.Context, at int64) (io.ReadCloser, error)
	local  bool // open is cheap and can be repeated
}

// blobs reads what a manifest refers to, bounded by limit and checked.
type blobs interface {
	read(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
	layer(d v1.Descriptor) blob
	close()
}

const maxIndexDepth = 4 // an index may list indexes

// resolve goes from an index or manifest down to one image.
func resolve(ctx context.Context, src blobs, mediaType types.MediaType, raw []byte, want platform, lim Limits) (*content, error) {
	for range maxIndexDepth {
		if !isIndex(mediaType, raw) {
			return fromManifest(src, mediaType, raw, lim)
		}
		idx, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("%w: its index cannot be read: %w", ErrCorrupt, err)
		}
		d, err := pick(idx.Manifests, want)
		if err != nil {
			return nil, err
		}
		if raw, err = src.read(ctx, d, lim.Manifest); err != nil {
			return nil, err
		}
		mediaType = d.MediaType
	}
	return nil, fmt.Errorf("%w: its indexes are nested too deeply", ErrUnsafe)
}

// isIndex goes by the media type, and by the content where there is none.
func isIndex(mediaType types.MediaType, raw []byte) bool {
	if mediaType.IsIndex() || mediaType.IsImage() {
		return mediaType.IsIndex()
	}
	var probe struct {
		Manifests json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(raw, &probe) == nil && len(probe.Manifests) > 0
}

func fromManifest(src blobs, mediaType types.MediaType, raw []byte, lim Limits) (*content, error) {
	if mediaType.IsSchema1() {
		return nil, fmt.Errorf("%w: its manifest has Docker's old format (schema 1): push it again with a current tool", ErrCorrupt)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: its manifest cannot be read: %w", ErrCorrupt, err)
	}
	if err := checkDescriptor(m.Config); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(m.Layers) > lim.Layers {
		return nil, fmt.Errorf("%w: %d layers, the limit is %d", ErrTooLarge, len(m.Layers), lim.Layers)
	}
	c := &content{id: m.Config.Digest.String(), close: src.close}
	c.config = func(ctx context.Context) ([]byte, error) { return src.read(ctx, m.Config, lim.Config) }
	for i, d := range m.Layers {
		if err := checkDescriptor(d); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if t := string(d.MediaType); t != "" && !strings.Contains(t, ".tar") {
			return nil, fmt.Errorf("%w: layer %d is %s, which is no part of a container's file system", ErrCorrupt, i+1, t)
		}
		c.layers = append(c.layers, src.layer(d))
	}
	return c, nil
}

// checkDescriptor refuses digests of other algorithms, and sizes that are none.
func checkDescriptor(d v1.Descriptor) error {
	if !isDigest(d.Digest.String()) {
		return fmt.Errorf("%w: %q is no SHA-256 digest", ErrCorrupt, d.Digest)
	}
	if d.Size < 0 {
		return fmt.Errorf("%w: a size of %d bytes", ErrCorrupt, d.Size)
	}
	return nil
}

// isDigest says whether s is "sha256:" and 64 lower-case hexadecimal digits;
// only such strings become file names.
func isDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(h) == 64 && isHex(h)
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// readAll reads a small blob and compares it with its descriptor.
func readAll(r io.Reader, d v1.Descriptor, limit int64) ([]byte, error) {
	b, err := readBounded(r, limit)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	if got := digestOf(b); got != d.Digest.String() {
		return nil, fmt.Errorf("%w: blob %s has digest %s", ErrCorrupt, d.Digest, got)
	}
	return b, nil
}

func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: over %d bytes", ErrTooLarge, limit)
	}
	return b, nil
}

// configFile is the part of an image's configuration that is used.
type configFile struct {
	raw      []byte
	platform platform
	config   Config
	diffIDs  []string
}

// parseConfig reads the configuration of an image with n layers.
func parseConfig(raw []byte, n int) (configFile, error) {
	cf, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return configFile{}, fmt.Errorf("%w: its configuration cannot be read: %w", ErrCorrupt, err)
	}
	if len(cf.RootFS.DiffIDs) != n || cf.RootFS.Type != "" && cf.RootFS.Type != "layers" {
		return configFile{}, fmt.Errorf("%w: its configuration lists %d layers, its manifest %d: is it a container image?", ErrCorrupt, len(cf.RootFS.DiffIDs), n)
	}
	out := configFile{platform: platform{os: cf.OS, arch: cf.Architecture, variant: cf.Variant}}
	for _, h := range cf.RootFS.DiffIDs {
		if !isDigest(h.String()) {
			return configFile{}, fmt.Errorf("%w: layer digest %q is not SHA-256", ErrCorrupt, h)
		}
		out.diffIDs = append(out.diffIDs, h.String())
	}
	c := cf.Config
	out.config = Config{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkDir: c.WorkingDir, User: c.User,
		Labels: c.Labels, StopSignal: c.StopSignal,
	}
	if out.config.Volumes, err = volumePaths(c.Volumes); err != nil {
		return configFile{}, err
	}
	if h := c.Healthcheck; h != nil {
		out.config.Health = &Health{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries,
		}
	}
	return out, nil
}

// volumePaths are the places of an image's volumes, sorted. One that is relative
// is taken from the root, as Docker does. What cannot be a place is refused: to
// Podman "/:/host" is a mount of the guest's own root.
func volumePaths(volumes map[string]struct{}) ([]string, error) {
	var dirs []string
	for v := range volumes {
		dir := path.Join("/", v)
		if agentapi.CheckPlace(dir) != nil {
			return nil, fmt.Errorf("%w: its configuration has a volume at %q, where none can be: have its VOLUME be a path below the root, without a colon", ErrUnsafe, v)
		}
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs), nil
}
