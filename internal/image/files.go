package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
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
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no regular file", ErrCorrupt, name)
	}
	if err == nil {
		var plain *os.File
		if plain, err = uncompress(ctx, f, tmp, limit); plain != nil {
			_ = f.Close()
			f = plain
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
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

// uncompress returns the plain archive of one that is compressed with gzip or
// zstd, nil if it is not.
func uncompress(ctx context.Context, f *os.File, tmp string, limit int64) (*os.File, error) {
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var dec io.Reader
	switch s := string(magic[:]); {
	case strings.HasPrefix(s, "\x1f\x8b"):
		z, err := gzip.NewReader(bufio.NewReader(f))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		dec = z
	case s == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(f, zstd.WithDecoderMaxMemory(512<<20))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		defer z.Close()
		dec = z
	default:
		return nil, nil
	}
	out, err := os.CreateTemp(tmp, "archive-*")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(out.Name())
	w := ctxWriter{ctx, out}
	n, err := io.Copy(w, io.LimitReader(dec, limit+1))
	switch {
	case n > limit:
		err = fmt.Errorf("%w: over %d MiB uncompressed", ErrTooLarge, limit>>20)
	case err != nil && ctx.Err() == nil && !isNoSpace(err):
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
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
