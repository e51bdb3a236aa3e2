package snapshot

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// PartKind says what a part is.
type PartKind string

// The kinds of parts: all that a clone needs of its host beside the VMM.
const (
	PartKernel PartKind = "kernel"
	PartRoot   PartKind = "root"
	PartImage  PartKind = "image"
)

// Part is something that a snapshot needs and that is not in it. An archive may
// carry it along, as one file; what the file holds is the business of who makes
// and takes it.
type Part struct {
	Kind PartKind `json:"kind"`
	ID   string   `json:"id"` // as Needs has it
	// Disk is the Digest of the disk that the snapshot's guest had of the image:
	// parts of it are in the guest's memory. Empty for others.
	Disk string `json:"disk,omitempty"`
	File File   `json:"file"` // Export fills it in

	// Path is where the file lies. For a Taker it is empty if the part was here
	// already.
	Path string `json:"-"`
}

// Taker takes what an archive carries along.
type Taker interface {
	// Lacks says whether a part is not here. Others are passed over.
	Lacks(p Part) bool
	// Take takes the parts, whose files it may move away, and keeps all of them
	// until release is called. The error wraps ErrMismatch or says which part is
	// not what its id says.
	Take(ctx context.Context, parts []Part) (release func(), err error)
}

// partsName is the entry that lists the parts; it comes after the manifest. Names
// of parts begin with a point, which those of a snapshot's files never do.
const partsName = "parts.json"

type partList struct {
	Parts []Part `json:"parts"`
}

func (p *Part) fileName() string { return "." + string(p.Kind) }

// needed is the id by which a snapshot needs a part.
func (n *Needs) needed(k PartKind) string {
	return map[PartKind]string{PartKernel: n.KernelID, PartRoot: n.RootID, PartImage: n.ImageDigest}[k]
}

// describeParts measures the files of parts, and writes the list of them.
func describeParts(ctx context.Context, t *tar.Writer, parts []Part) error {
	for i := range parts {
		p := &parts[i]
		digest, data, err := digestOf(ctx, p.Path)
		if err != nil {
			return err
		}
		st, err := os.Stat(p.Path)
		if err != nil {
			return err
		}
		p.File = File{Name: p.fileName(), Size: st.Size(), Data: data, Digest: digest}
	}
	b, err := json.MarshalIndent(partList{parts}, "", "  ")
	if err != nil {
		return err
	}
	return entry(t, partsName, b)
}

// readParts reads the list of parts, if the archive has one: else it returns
// the header that came instead, nil for the archive's end.
func readParts(t *tar.Reader, m *Manifest) ([]Part, *tar.Header, error) {
	h, err := t.Next()
	if errors.Is(err, io.EOF) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, notArchive(err)
	}
	if h.Name != partsName {
		return nil, h, nil
	}
	if h.Typeflag != tar.TypeReg || h.Size > maxManifest {
		return nil, nil, fmt.Errorf("%w: its list of parts has %d bytes", ErrCorrupt, h.Size)
	}
	b, err := io.ReadAll(t)
	if err != nil {
		return nil, nil, notArchive(err)
	}
	var list partList
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, nil, fmt.Errorf("%w: its list of parts: %w", ErrCorrupt, err)
	}
	seen := map[PartKind]bool{}
	for _, p := range list.Parts {
		f, id := p.File, m.Needs.needed(p.Kind)
		switch {
		case id == "" || p.ID != id || seen[p.Kind]:
			return nil, nil, fmt.Errorf("%w: it carries the %q %q, which it does not need", ErrCorrupt, p.Kind, p.ID)
		case f.Name != p.fileName() || f.Size < 0 || f.Size > maxFile || f.Data < 0 || f.Data > f.Size:
			return nil, nil, fmt.Errorf("%w: its part %q of %d bytes, %d of them data", ErrCorrupt, f.Name, f.Size, f.Data)
		}
		seen[p.Kind] = true
	}
	if h, err = t.Next(); err != nil {
		return nil, nil, notArchive(err)
	}
	return list.Parts, h, nil
}

// takeParts hands the parts over, once their files are what the list says, and
// removes what is left of these.
func (u *unpacking) takeParts(ctx context.Context, taker Taker) (release func(), err error) {
	if taker == nil || len(u.parts) == 0 {
		return func() {}, nil
	}
	for _, p := range u.parts {
		if p.Path == "" {
			continue
		}
		defer func() { _ = os.Remove(p.Path) }()
		digest, err := Digest(ctx, p.Path)
		if err != nil {
			return nil, err
		}
		if digest != p.File.Digest {
			return nil, fmt.Errorf("%w: the checksum of the %s that it carries is wrong", ErrCorrupt, p.Kind)
		}
	}
	return taker.Take(ctx, u.parts)
}
