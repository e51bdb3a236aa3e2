package snapshot

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// An exported snapshot is a tar archive, compressed with zstd, whose checksums
// notice damage on the way. The first entry is the manifest; then each run of a
// file's data, up to maxRun, is an entry of its own, FILE/OFFSET, with the
// offset in hexadecimal. What no entry has is zeros.
const (
	maxRun      = 4 << 20   // bytes; a multiple of digestChunk
	maxWindow   = 128 << 20 // bytes that a decoder may have to remember
	offsetWidth = 16
)

// Export writes a snapshot, which is held, as one archive.
func (s *Snapshot) Export(ctx context.Context, w io.Writer) error {
	if err := s.Verify(ctx, false); err != nil {
		return err
	}
	for _, d := range s.Manifest.Disks {
		if d.Path != "" {
			return fmt.Errorf("export snapshot %s: its disk %s is the file %s, which others use, too, and which does not travel with it",
				s.Manifest.Title(), d.ID, d.Path)
		}
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	err = s.pack(ctx, t)
	if err == nil {
		err = t.Close()
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return fmt.Errorf("export snapshot %s: %w", s.Manifest.Title(), err)
	}
	return nil
}

func (s *Snapshot) pack(ctx context.Context, t *tar.Writer) error {
	b, err := json.MarshalIndent(s.Manifest, "", "  ")
	if err != nil {
		return err
	}
	if err := entry(t, manifestName, b); err != nil {
		return err
	}
	for _, f := range s.Manifest.Files {
		if err := s.packFile(ctx, t, f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

func (s *Snapshot) packFile(ctx context.Context, t *tar.Writer, f File) error {
	r, err := os.Open(s.Path(f.Name))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	var (
		run   []byte
		start int64
	)
	flush := func() error {
		if len(run) == 0 {
			return nil
		}
		name := fmt.Sprintf("%s/%0*x", f.Name, offsetWidth, start)
		err := entry(t, name, run)
		run = run[:0]
		return err
	}
	err = chunks(ctx, r, f.Size, func(off int64, p []byte) error {
		if len(run) == maxRun || off != start+int64(len(run)) {
			if err := flush(); err != nil {
				return err
			}
			start = off
		}
		run = append(run, p...)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

func entry(t *tar.Writer, name string, b []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o400, Size: int64(len(b)), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := t.Write(b)
	return err
}

// Import reads an archive that Export has written, and returns the snapshot,
// which the caller holds. name replaces the one in the archive, if it is not
// empty; where neither is one, the snapshot gets one (FreeName). The error wraps
// ErrCorrupt for what is no such archive, or whose contents are not what its
// manifest says; nothing is left of it then.
func (s *Store) Import(ctx context.Context, r io.Reader, name string) (*Snapshot, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("import snapshot: %w", err)
	}
	defer z.Close()
	snap, err := s.unpack(ctx, tar.NewReader(z), name)
	if err != nil {
		return nil, fmt.Errorf("import snapshot: %w", noSpace(err, s.dir))
	}
	return snap, nil
}

func (s *Store) unpack(ctx context.Context, t *tar.Reader, name string) (*Snapshot, error) {
	m, err := readFirst(t)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = m.Name
	}
	if name == "" { // it would go with its first user
		if name, err = s.FreeName(m.Source.Name); err != nil {
			return nil, err
		}
	}
	var need int64
	for _, f := range m.Files {
		need += f.Data
	}
	d, err := s.Begin(name, need)
	if err != nil {
		return nil, err
	}
	files, err := unpackFiles(ctx, t, d, &m)
	if err != nil {
		d.Abort()
		return nil, err
	}
	m.Key, m.Imported = "", true // it is somebody's from now on
	return d.Commit(ctx, m, files)
}

func readFirst(t *tar.Reader) (Manifest, error) {
	h, err := t.Next()
	if err != nil {
		return Manifest{}, notArchive(err)
	}
	if h.Name != manifestName || h.Typeflag != tar.TypeReg || h.Size > maxManifest {
		return Manifest{}, fmt.Errorf("%w: it begins with %q, not with a manifest", ErrCorrupt, h.Name)
	}
	b, err := io.ReadAll(t)
	if err != nil {
		return Manifest{}, notArchive(err)
	}
	m, err := ParseManifest(b)
	if err != nil {
		return m, err
	}
	for _, d := range m.Disks {
		if d.Path != "" {
			return m, fmt.Errorf("%w: its disk %s lies outside of it, at %s", ErrCorrupt, d.ID, d.Path)
		}
	}
	return m, nil
}

// unpackFiles makes the files, as large as the manifest says and empty, and
// fills in what comes.
func unpackFiles(ctx context.Context, t *tar.Reader, d *Draft, m *Manifest) (names []string, err error) {
	files := map[string]*os.File{}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	sizes := map[string]int64{}
	for _, f := range m.Files {
		out, err := os.OpenFile(d.Path(f.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		files[f.Name], sizes[f.Name] = out, f.Size
		names = append(names, f.Name)
		if err := out.Truncate(f.Size); err != nil {
			return nil, err
		}
	}
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, notArchive(err)
		}
		name, off, err := parseRun(h, sizes)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.NewOffsetWriter(files[name], off), t); err != nil {
			return nil, notArchive(err)
		}
	}
}

// parseRun says where an entry belongs, and refuses one that belongs nowhere: a
// link, a path that leads elsewhere, data beyond a file's end.
func parseRun(h *tar.Header, sizes map[string]int64) (name string, off int64, err error) {
	name, text, _ := strings.Cut(h.Name, "/")
	size, known := sizes[name]
	off, err = strconv.ParseInt(text, 16, 64)
	switch {
	case h.Typeflag != tar.TypeReg:
		return "", 0, fmt.Errorf("%w: %q in it is a link or a special file", ErrCorrupt, h.Name)
	case !known || err != nil || len(text) != offsetWidth:
		return "", 0, fmt.Errorf("%w: %q in it belongs to none of its files", ErrCorrupt, h.Name)
	case h.Size > maxRun || off < 0 || off%digestChunk != 0 || h.Size > size-off:
		return "", 0, fmt.Errorf("%w: %q in it does not fit into a file of %d bytes", ErrCorrupt, h.Name, size)
	}
	return name, off, nil
}

// notArchive is for what a reader of tar or zstd does not understand. Errors of
// the disk stay what they are.
func notArchive(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: it is no exported snapshot, or not all of one: %w", ErrCorrupt, err)
}
