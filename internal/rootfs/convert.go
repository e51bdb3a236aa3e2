package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// streamSlack is what a stream may have above Limits.Bytes: headers, padding
// and what a later entry of the same name replaces.
const streamSlack = 1 << 30

// Entry is a file that is put on top of an archive. What Mode does not say is
// as in a new file of root's: owner and group 0, no extended attributes.
type Entry struct {
	Name    string      // relative to the root, with slashes
	Mode    os.FileMode // type and permissions: a regular file, os.ModeDir or os.ModeSymlink
	Content []byte      // of a regular file
	Target  string      // of a symbolic link
	ModTime time.Time   // zero: the start of 1970, so that the same entries give the same disk
}

// ConvertTar makes an ext4 file system in dst, which must be empty, of one
// archive, plain or compressed with gzip or zstd, and of extra entries on top
// of it, which replace what has the same name. Names are checked as those of
// an image's layers; there are no whiteouts to come across in a root that was
// just built, but they would be taken for such.
//
// The archive is kept in an unnamed file beside dst until the disk is
// written: where directories lie is known only after its last entry. On an
// error dst is of no use.
func ConvertTar(ctx context.Context, r io.Reader, extra []Entry, dst *os.File, o Options) (Stats, error) {
	dir := filepath.Dir(dst.Name())
	spool, err := os.CreateTemp(dir, ".spool-*")
	if err != nil {
		return Stats{}, fmt.Errorf("keep the archive: %w", noSpace(err, dir))
	}
	defer func() { _ = spool.Close() }()
	if err := os.Remove(spool.Name()); err != nil {
		return Stats{}, fmt.Errorf("keep the archive: %w", err)
	}
	limit := o.Limits.orDefault().Bytes + streamSlack
	n, err := io.Copy(spool, io.LimitReader(&countingReader{ctx: ctx, r: r, progress: o.Progress}, limit+1))
	if err != nil {
		return Stats{}, fmt.Errorf("keep the archive: %w", noSpace(err, dir))
	}
	if n > limit {
		return Stats{}, fmt.Errorf("%w: a stream of over %d MiB", ErrTooLarge, limit>>20)
	}
	top, err := EntriesLayer("extra files", extra)
	if err != nil {
		return Stats{}, err
	}
	o.Progress = nil // what comes now was counted
	base := Layer{Name: "archive", Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(spool, 0, n)), nil
	}}
	return BuildImage(ctx, []Layer{base, top}, dst, o)
}

// EntriesLayer returns a layer that holds the entries, to be put on top of
// others. The same entries give the same bytes.
func EntriesLayer(name string, entries []Entry) (Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := e.writeTo(w); err != nil {
			return Layer{}, fmt.Errorf("%s: entry %q: %w", name, e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return Layer{}, fmt.Errorf("%s: %w", name, err)
	}
	data := slices.Clip(b.Bytes())
	return Layer{Name: name, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}, nil
}

func (e Entry) writeTo(w *tar.Writer) error {
	h := &tar.Header{Name: e.Name, Mode: unixMode(e.Mode), ModTime: e.ModTime, Format: tar.FormatPAX}
	if e.ModTime.IsZero() {
		h.ModTime = time.Unix(0, 0)
	}
	switch e.Mode.Type() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(e.Content))
	case os.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, e.Name+"/"
	case os.ModeSymlink:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Target, 0o777
	default:
		return errors.New("is neither a file, nor a directory, nor a symbolic link")
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := w.Write(e.Content)
	return err
}

// unixMode returns the permissions as stat(2) has them.
func unixMode(m os.FileMode) int64 {
	mode := int64(m.Perm())
	for _, b := range []struct {
		goBit os.FileMode
		bit   int64
	}{{os.ModeSetuid, 0o4000}, {os.ModeSetgid, 0o2000}, {os.ModeSticky, 0o1000}} {
		if m&b.goBit != 0 {
			mode |= b.bit
		}
	}
	return mode
}
