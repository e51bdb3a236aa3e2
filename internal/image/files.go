package image

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/fcvm/fcvm/internal/rootfs"
)

// files is a directory or a tar archive that holds an image's parts by name.
type files interface {
	// open returns a file's content and size. The error wraps fs.ErrNotExist
	// when there is none of that name.
	open(name string) (io.ReadCloser, int64, error)
	close()
}

// dirFiles reads below a directory and never leaves it.
type dirFiles struct{ root *os.Root }

func openDir(dir string) (files, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return dirFiles{r}, nil
}

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	// Without O_NONBLOCK a FIFO would block the open.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no regular file", ErrCorrupt, name)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (d dirFiles) close() { _ = d.root.Close() }

const (
	maxArchiveEntries = 100_000 // far more than an image has parts
	maxAliases        = 8       // links followed in an archive
)

// tarFiles reads the members of a tar archive where they lie.
type tarFiles struct {
	f       *os.File
	members map[string]*io.SectionReader
	aliases map[string]string // links, which old docker save makes for layers
}

// openTar indexes an archive. One that is compressed is unpacked first, into
// a file in tmp that has no name and so goes by itself.
func openTar(ctx context.Context, name, tmp string, limit int64) (files, error) {
	f, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	return indexTar(ctx, f, tmp, limit)
}

func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no regular file", ErrCorrupt, name)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// indexTar is openTar for an archive that is open; it closes f.
func indexTar(ctx context.Context, f *os.File, tmp string, limit int64) (*tarFiles, error) {
	plain, err := uncompress(ctx, f, tmp, limit)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	if plain != nil {
		_ = f.Close()
		f = plain
	}
	t := &tarFiles{f: f, members: map[string]*io.SectionReader{}, aliases: map[string]string{}}
	if err := t.index(ctx); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tarFiles) index(ctx context.Context) error {
	size, err := t.f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = t.f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	tr := tar.NewReader(t.f) // seeks over what is not asked for
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: it is no complete tar archive: %w", ErrCorrupt, err)
		}
		if n >= maxArchiveEntries {
			return fmt.Errorf("%w: over %d members", ErrTooLarge, maxArchiveEntries)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := t.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			if h.Size > size-at {
				return fmt.Errorf("%w: it ends within %q", ErrCorrupt, h.Name)
			}
			t.members[name] = io.NewSectionReader(t.f, at, h.Size)
		case tar.TypeSymlink:
			t.aliases[name] = path.Join(path.Dir(name), h.Linkname) //nolint:gosec // looked up in the index, never opened
		case tar.TypeLink:
			t.aliases[name] = path.Clean(h.Linkname)
		}
	}
	if len(t.members) == 0 {
		return fmt.Errorf("%w: it is no tar archive, or an empty one", ErrCorrupt)
	}
	return nil
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	at := path.Clean(name)
	for range maxAliases {
		if m := t.members[at]; m != nil {
			return io.NopCloser(io.NewSectionReader(m, 0, m.Size())), m.Size(), nil
		}
		next, ok := t.aliases[at]
		if !ok {
			break
		}
		at = next
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (t *tarFiles) close() { _ = t.f.Close() }

// uncompress returns the plain archive of one that is compressed, nil if it is
// not.
func uncompress(ctx context.Context, f *os.File, tmp string, limit int64) (*os.File, error) {
	var magic [6]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	dec, done, err := decompressor(string(magic[:]), io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if dec == nil {
		return nil, nil
	}
	defer done()
	return spool(ctx, dec, tmp, limit)
}

// decompressor returns what decompresses r, by its first bytes; nil if they
// are of no compression. These are the ones that docker load knows.
func decompressor(magic string, r io.Reader) (io.Reader, func(), error) {
	none := func() {}
	switch {
	case strings.HasPrefix(magic, "\x1f\x8b"):
		z, err := gzip.NewReader(bufio.NewReader(r))
		return z, none, err
	case strings.HasPrefix(magic, "\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(512<<20))
		if err != nil {
			return nil, none, err
		}
		return z, z.Close, nil
	case strings.HasPrefix(magic, "\xfd7zXZ\x00"):
		z, err := xz.NewReader(bufio.NewReader(r), xz.DefaultDictMax)
		return z, none, err
	case strings.HasPrefix(magic, "BZh"):
		return bzip2.NewReader(bufio.NewReader(r)), none, nil
	}
	return nil, none, nil
}

// spool keeps what r gives in a file in tmp that has no name and so goes by
// itself.
func spool(ctx context.Context, r io.Reader, tmp string, limit int64) (*os.File, error) {
	out, err := os.CreateTemp(tmp, "archive-*")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(out.Name())
	in := &rootfs.FailReader{R: io.LimitReader(r, limit+1)}
	n, err := io.Copy(ctxWriter{ctx, out}, in)
	switch {
	case n > limit:
		err = fmt.Errorf("%w: over %d MiB uncompressed", ErrTooLarge, limit>>20)
	case in.Err != nil && ctx.Err() == nil:
		err = fmt.Errorf("%w: %w", ErrCorrupt, in.Err)
	}
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	return out, nil
}

// ctxWriter ends a long copy when its context does.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w ctxWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
