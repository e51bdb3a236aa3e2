package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied between two looks at the context.
const copyChunk = 16 << 20

// CopySparse copies the file src to dst, which must not exist: as a reflink
// where the file system can (xfs, btrfs), else only the extents that hold
// data, so that holes stay holes. dst may be read and written by its owner
// only. src must not change meanwhile. On an error there is no dst.
func CopySparse(ctx context.Context, dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("copy disk: %w", noSpace(err, filepath.Dir(dst)))
	}
	err = reflink(out, in)
	if err != nil {
		err = copyExtents(ctx, out, in)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		_ = os.Remove(dst)
		return fmt.Errorf("copy %s to %s: %w", src, dst, noSpace(err, filepath.Dir(dst)))
	}
	return nil
}

// reflink makes dst share the blocks of src. That it fails says only that
// they must be copied: file systems give half a dozen reasons.
func reflink(dst, src *os.File) error {
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}

// SharesBlocks reports whether a copy of a file in a directory, by CopySparse, takes
// no room of its own until it is written to.
func SharesBlocks(dir, file string) bool {
	src, err := os.Open(file)
	if err != nil {
		return false
	}
	defer func() { _ = src.Close() }()
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	dst := os.NewFile(uintptr(fd), dir)
	defer func() { _ = dst.Close() }()
	return reflink(dst, src) == nil
}

// copyExtents copies what is no hole into dst, which must be empty.
func copyExtents(ctx context.Context, dst, src *os.File) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); off < st.Size(); {
		start, end, err := nextExtent(src, off, st.Size())
		if err != nil {
			return err
		}
		if err := copyRange(ctx, dst, src, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// nextExtent returns where the next data at or after off starts and ends;
// both are size when there is none. A file system that knows no holes has one
// extent.
func nextExtent(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return off, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = f.Seek(start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	return min(start, size), min(end, size), nil
}

func copyRange(ctx context.Context, dst, src *os.File, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-start, copyChunk)
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		// Between files this is copy_file_range(2): the bytes stay in the kernel.
		if _, err := io.CopyN(dst, src, n); err != nil {
			return err
		}
		start += n
	}
	return nil
}
