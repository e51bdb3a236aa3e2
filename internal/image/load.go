package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/fcvm/fcvm/internal/progress"
)

// LoadOptions for Load and Import. The zero value is usable.
type LoadOptions struct {
	Platform string            // of images for several; of a root file system: what it is for. Empty: this machine's
	Progress progress.Reporter // nil: progress.Discard
}

func (o LoadOptions) reporter() progress.Reporter {
	if o.Progress == nil {
		return progress.Discard
	}
	return o.Progress
}

// Loaded is an image that has come into the cache.
type Loaded struct {
	Digest string
	Names  []string // in full
}

// Load takes all images of an archive that docker save or podman save made,
// or an OCI archive, plain or compressed with gzip, zstd, xz or bzip2, into the
// cache, under the names that they have in it. Those for another platform are
// left out, unless there are no others. in is read from its start if it
// is a file, else to its end.
func (s *Store) Load(ctx context.Context, in *os.File, o LoadOptions) ([]Loaded, error) {
	f, err := s.seekable(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", s.diskError(err))
	}
	fsys, err := indexTar(ctx, f, s.work(), s.limits().Rootfs.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", s.diskError(err))
	}
	return s.loadFiles(ctx, fsys, o, nil)
}

// LoadDir is Load for an OCI layout.
func (s *Store) LoadDir(ctx context.Context, dir string, o LoadOptions) ([]Loaded, error) {
	fsys, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return s.loadFiles(ctx, fsys, o, nil)
}

// loadFiles takes all images of an archive, under their own names or, if it is
// a single one, under the name that is given. It closes fsys.
func (s *Store) loadFiles(ctx context.Context, fsys files, o LoadOptions, as name.Reference) ([]Loaded, error) {
	defer fsys.close()
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	list, err := members(ctx, fsys, want, s.limits())
	if err != nil {
		return nil, fmt.Errorf("load images: %w", s.diskError(err))
	}
	if as != nil {
		if len(list) != 1 {
			return nil, fmt.Errorf("%w: the archive holds %d images: they cannot all be %s", ErrReference, len(list), fullName(as))
		}
		list[0].names = []name.Reference{as}
	}
	var out []Loaded
	var others []error // images that do not run here
	for _, m := range list {
		l, err := Loaded{}, m.err
		if err == nil {
			l, err = s.loadMember(ctx, m, want, o)
		}
		switch {
		case errors.Is(err, ErrPlatform):
			others = append(others, err)
		case err != nil:
			return out, err
		default:
			out = append(out, l)
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(others...)
	}
	for _, err := range others {
		o.reporter().Note("skipped: " + err.Error())
	}
	return out, nil
}

func (s *Store) loadMember(ctx context.Context, m member, want platform, o LoadOptions) (Loaded, error) {
	m.c.keep, m.c.again = true, true
	r := reference{text: short(m.c.id)}
	if len(m.names) > 0 {
		r.text = fullName(m.names[0])
	}
	img, err := s.obtain(ctx, m.c, r, want, EnsureOptions{Progress: o.reporter()})
	if err == nil {
		err = s.hold(&img)
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("load image %s: %w", r.text, err)
	}
	defer img.Release()
	l := Loaded{Digest: img.Digest}
	for _, n := range m.names {
		r.name = n
		if err := s.remember(r, want.plain(), img.Digest, ""); err != nil {
			return l, err
		}
		l.Names = append(l.Names, fullName(n))
	}
	return l, nil
}

// seekable returns a file that can be read at any place: in itself, or a copy
// of what comes out of it.
func (s *Store) seekable(ctx context.Context, in *os.File) (*os.File, error) {
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() {
		// A descriptor of its own, whose offset is nobody else's.
		return os.Open(fmt.Sprintf("/proc/self/fd/%d", in.Fd()))
	}
	// A read from a pipe or a terminal does not end with the context.
	stop := context.AfterFunc(ctx, func() { _ = in.SetReadDeadline(past) })
	defer stop()
	f, err := spool(ctx, in, s.work(), s.limits().Rootfs.Bytes+streamSlack)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.Size() == 0 {
		_ = f.Close()
		return nil, fmt.Errorf("%w: nothing came in", ErrCorrupt)
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// isLayout reports whether a directory is an OCI layout.
func isLayout(dir string) bool {
	for _, f := range []string{"oci-layout", ociIndex} {
		if _, err := os.Stat(dir + "/" + f); errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}
