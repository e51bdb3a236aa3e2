package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Details is what an image says of itself beyond what it takes to run it.
type Details struct {
	Created time.Time
	Author  string
	DiffIDs []string // digests of the layers' contents, lowest first
	History []Step   // oldest first
	Ports   []string // that the image exposes
}

// Step is one step of how an image was made.
type Step struct {
	Created   time.Time
	CreatedBy string
	Author    string
	Comment   string
	Empty     bool // it made no layer
	Layer     int  // which of the layers it made, from 0; -1 for none
}

// Details reads an image's configuration. It is there since fcvm keeps layers.
func (s *Store) Details(ctx context.Context, e Entry) (Details, error) {
	var d Details
	raw, err := s.rawConfig(ctx, e.Digest)
	if err != nil {
		return d, fmt.Errorf("read the configuration of image %s: %w", short(e.Digest), err)
	}
	cf, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return d, fmt.Errorf("%w: the configuration of image %s: %w", ErrCorrupt, short(e.Digest), err)
	}
	d.Created, d.Author = cf.Created.Time, cf.Author
	for _, h := range cf.RootFS.DiffIDs {
		d.DiffIDs = append(d.DiffIDs, h.String())
	}
	for p := range cf.Config.ExposedPorts {
		d.Ports = append(d.Ports, p)
	}
	slices.Sort(d.Ports)
	layer := 0
	for _, h := range cf.History {
		step := Step{Created: h.Created.Time, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, Empty: h.EmptyLayer, Layer: -1}
		if !h.EmptyLayer && layer < len(d.DiffIDs) {
			step.Layer = layer
			layer++
		}
		d.History = append(d.History, step)
	}
	return d, nil
}

// rawConfig is the configuration as the image has it, checked against the
// image's digest.
func (s *Store) rawConfig(ctx context.Context, digest string) ([]byte, error) {
	raw, err := s.keptConfig(digest)
	if !errors.Is(err, fs.ErrNotExist) {
		return raw, err
	}
	c, err := s.findSource(ctx, digest) // an older fcvm has made it
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.config(ctx)
}

// keptConfig is rawConfig's answer from the cache alone.
func (s *Store) keptConfig(digest string) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.entry(digest), configName))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := readBounded(f, s.limits().Config)
	if err == nil && digestOf(raw) != digest {
		err = fmt.Errorf("%w: %s", ErrCorrupt, f.Name())
	}
	return raw, err
}
