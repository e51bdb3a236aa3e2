package snapshot

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// An exported snapshot is a tar archive, compressed with zstd, whose checksums
// notice damage on the way. The first entry is the manifest; then each run of a
// file's data, up to maxRun, is an entry of its own, FILE/OFFSET, with the
// offset in hexadecimal. What no entry has is zeros. The manifest has a recorded
// working set among the files, as that of the snapshot itself has not (see
// workingset.go). An archive that carries parts along (see Part) lists them after
// the manifest; their data comes last.
const (
	maxRun      = 4 << 20   // bytes; a multiple of digestChunk
	maxWindow   = 128 << 20 // bytes that a decoder may have to remember
	offsetWidth = 16
)

// Export writes a snapshot, which is held, as one archive, and with it the parts
// that it is to carry along.
func (s *Snapshot) Export(ctx context.Context, w io.Writer, parts ...Part) error {
	if err := s.Manifest.CheckRuns(); err != nil {
		return err
	}
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
	err = s.pack(ctx, t, parts)
	if err == nil {
		err = t.Close()
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return fmt.Errorf("export snapshot %s: %w", s.Manifest.Title(), err)
	}
	return nil
}

func (s *Snapshot) pack(ctx context.Context, t *tar.Writer, parts []Part) error {
	set, err := s.openWorkingSet(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", WorkingSetName, err)
	}
	defer set.close()
	b, err := json.MarshalIndent(set.addTo(s.Manifest), "", "  ")
	if err != nil {
		return err
	}
	if err := entry(t, manifestName, b); err != nil {
		return err
	}
	if len(parts) > 0 {
		if err := describeParts(ctx, t, parts); err != nil {
			return err
		}
	}
	for _, f := range s.Manifest.Files {
		if err := packFile(ctx, t, f, s.Path(f.Name)); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if err := set.pack(ctx, t); err != nil {
		return fmt.Errorf("%s: %w", WorkingSetName, err)
	}
	for _, p := range parts {
		if err := packFile(ctx, t, p.File, p.Path); err != nil {
			return fmt.Errorf("%s %s: %w", p.Kind, p.ID, err)
		}
	}
	return nil
}

func packFile(ctx context.Context, t *tar.Writer, f File, path string) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return packOpen(ctx, t, f, r)
}

func packOpen(ctx context.Context, t *tar.Writer, f File, r *os.File) error {
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
	err := chunks(ctx, r, f.Size, func(off int64, p []byte) error {
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
// empty; where neither is one, the snapshot gets one (FreeName). What the archive
// carries along is taken by taker; nil: nobody. The error wraps ErrCorrupt for
// what is no such archive, or whose contents are not what its manifest says;
// nothing is left of the snapshot then.
func (s *Store) Import(ctx context.Context, r io.Reader, name string, taker Taker) (*Snapshot, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("import snapshot: %w", err)
	}
	defer z.Close()
	snap, err := s.unpack(ctx, tar.NewReader(z), name, taker)
	if err != nil {
		return nil, fmt.Errorf("import snapshot: %w", noSpace(err, s.dir))
	}
	return snap, nil
}

func (s *Store) unpack(ctx context.Context, t *tar.Reader, name string, taker Taker) (*Snapshot, error) {
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
	u := &unpacking{tar: t}
	if u.parts, u.next, err = readParts(t, &m); err != nil {
		return nil, err
	}
	files := m.Files
	if u.set, err = m.takeWorkingSet(); err != nil {
		return nil, err
	}
	lacks := make([]bool, len(u.parts))
	for i, p := range u.parts {
		if lacks[i] = taker != nil && taker.Lacks(p); lacks[i] {
			files = append(slices.Clip(files), p.File)
		}
	}
	var need int64
	for _, f := range files {
		need += f.room()
	}
	d, err := s.Begin(name, need)
	if err != nil {
		return nil, err
	}
	for i := range u.parts {
		if lacks[i] {
			u.parts[i].Path = d.Path(u.parts[i].File.Name)
		}
	}
	release, err := u.unpack(ctx, d, files, taker)
	if err != nil {
		d.Abort()
		return nil, err
	}
	defer release()
	m.Key, m.Imported = "", true // it is somebody's from now on
	var names []string
	for _, f := range m.Files {
		names = append(names, f.Name)
	}
	return d.Commit(ctx, m, names)
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

// unpacking is an archive that is being read, after its manifest.
type unpacking struct {
	tar   *tar.Reader
	next  *tar.Header // of the entry that has come; nil: it was the last
	parts []Part
	set   *File // the working set; nil: it has none
	runs  map[string]*runs
}

// room is how much data an archive may have of a file, bytes. One that has none says
// so by its digest, or is of an fcvm that did not say how much there is.
func (f *File) room() int64 {
	if f.Data > 0 || f.Digest == zerosDigest(f.Size) {
		return f.Data
	}
	return f.Size
}

// runs is one file as far as it has come.
type runs struct {
	file *os.File // nil: it is passed over
	size int64
	left int64 // bytes of data that may still come
}

// unpack fills a draft's files, and has the parts taken.
func (u *unpacking) unpack(ctx context.Context, d *Draft, files []File, taker Taker) (release func(), err error) {
	if err := u.unpackFiles(ctx, d, files); err != nil {
		return nil, err
	}
	if err := checkWorkingSet(ctx, d, u.set); err != nil {
		return nil, err
	}
	return u.takeParts(ctx, taker)
}

// unpackFiles makes the files, as large as the manifest says and empty, and
// fills in what comes.
func (u *unpacking) unpackFiles(ctx context.Context, d *Draft, files []File) (err error) {
	u.runs = map[string]*runs{}
	for _, p := range u.parts {
		u.runs[p.File.Name] = &runs{size: p.File.Size, left: p.File.room()}
	}
	defer func() {
		for _, r := range u.runs {
			if r.file != nil {
				err = errors.Join(err, r.file.Close())
			}
		}
	}()
	for _, f := range files {
		out, err := os.OpenFile(d.Path(f.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		u.runs[f.Name] = &runs{file: out, size: f.Size, left: f.room()}
		if err := out.Truncate(f.Size); err != nil {
			return err
		}
	}
	for u.next != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.run(); err != nil {
			return err
		}
		if u.next, err = u.tar.Next(); errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return notArchive(err)
		}
	}
	return nil
}

// run puts one entry where it belongs.
func (u *unpacking) run() error {
	r, off, err := u.parseRun(u.next)
	if err != nil {
		return err
	}
	r.left -= u.next.Size
	out := io.Discard
	if r.file != nil {
		out = io.NewOffsetWriter(r.file, off)
	}
	if _, err := io.Copy(out, u.tar); err != nil {
		return notArchive(err)
	}
	return nil
}

// parseRun says where an entry belongs, and refuses one that belongs nowhere: a
// link, a path that leads elsewhere, data beyond a file's end, or more of it than
// there is room for.
func (u *unpacking) parseRun(h *tar.Header) (r *runs, off int64, err error) {
	name, text, _ := strings.Cut(h.Name, "/")
	r = u.runs[name]
	off, err = strconv.ParseInt(text, 16, 64)
	switch {
	case h.Typeflag != tar.TypeReg:
		return nil, 0, fmt.Errorf("%w: %q in it is a link or a special file", ErrCorrupt, h.Name)
	case r == nil || err != nil || len(text) != offsetWidth:
		return nil, 0, fmt.Errorf("%w: %q in it belongs to none of its files", ErrCorrupt, h.Name)
	case h.Size > maxRun || off < 0 || off%digestChunk != 0 || h.Size > r.size-off:
		return nil, 0, fmt.Errorf("%w: %q in it does not fit into a file of %d bytes", ErrCorrupt, h.Name, r.size)
	case h.Size > r.left:
		return nil, 0, fmt.Errorf("%w: with %q it has more data than it says", ErrCorrupt, h.Name)
	}
	return r, off, nil
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
