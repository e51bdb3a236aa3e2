// Package memimage handles files that hold a guest's memory: flat, as large as
// the memory, and sparse, since most of what a guest has never used is zeros.
package memimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// Page is the unit in which zeros are looked for, bytes. A file system with
	// larger blocks stores more than it must, and nothing else.
	Page = 4096

	// chunk is how much is read at once, bytes; a multiple of Page.
	chunk = 1 << 20
)

// Range is a part of a file, bytes: from Start up to End.
type Range struct{ Start, End int64 }

// Create makes a new file of nothing but a hole, as large as a guest's memory.
// Only its owner may read and write it.
func Create(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		_ = os.Remove(path)
		return nil, err
	}
	return f, nil
}

// CloseOrRemove closes a new file, and removes it if it was not written: if err
// is one, or closing fails. It returns both.
func CloseOrRemove(f *os.File, err error) error {
	err = errors.Join(err, f.Close())
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Extents returns what of the first size bytes of a file is no hole, in order.
// A file system that knows no holes has one extent.
func Extents(f *os.File, size int64) ([]Range, error) {
	var all []Range
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return all, nil
		case errors.Is(err, unix.EINVAL):
			return append(all, Range{off, size}), nil
		case err != nil:
			return nil, fmt.Errorf("look for data in %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("look for holes in %s: %w", f.Name(), err)
		}
		if start >= size {
			return all, nil
		}
		all = append(all, Range{start, min(end, size)})
		off = end
	}
	return all, nil
}

// Without returns the parts of all that are in none of except. Both are in
// order and do not overlap.
func Without(all, except []Range) []Range {
	var left []Range
	for _, r := range all {
		for len(except) > 0 && except[0].End <= r.Start {
			except = except[1:]
		}
		at := r.Start
		for _, e := range except {
			if e.Start >= r.End {
				break
			}
			if e.Start > at {
				left = append(left, Range{at, e.Start})
			}
			at = max(at, e.End)
		}
		if at < r.End {
			left = append(left, Range{at, r.End})
		}
	}
	return left
}

// Copy copies ranges of src, which start at pages, to the same place in dst.
// Pages of zeros are not written: dst must have holes, or zeros, there.
func Copy(ctx context.Context, dst io.WriterAt, src io.ReaderAt, ranges []Range) error {
	buf := make([]byte, chunk)
	for _, r := range ranges {
		for off := r.Start; off < r.End; off += chunk {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			b := buf[:min(chunk, r.End-off)]
			if _, err := src.ReadAt(b, off); err != nil {
				return fmt.Errorf("read memory at %#x: %w", off, err)
			}
			if err := writeData(dst, b, off); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeData writes the pages of b that are not all zeros, neighbours at once.
func writeData(dst io.WriterAt, b []byte, off int64) error {
	for len(b) > 0 {
		skip, data := split(b)
		if data > 0 {
			if _, err := dst.WriteAt(b[skip:skip+data], off+int64(skip)); err != nil {
				return err
			}
		}
		b = b[skip+data:]
		off += int64(skip + data)
	}
	return nil
}

// split returns how many bytes at the start of b are pages of zeros, and how
// many after them are pages with anything else.
func split(b []byte) (zeros, data int) {
	for zeros < len(b) && isZero(b[zeros:min(zeros+Page, len(b))]) {
		zeros += Page
	}
	zeros = min(zeros, len(b))
	for zeros+data < len(b) && !isZero(b[zeros+data:min(zeros+data+Page, len(b))]) {
		data += Page
	}
	return zeros, min(data, len(b)-zeros)
}

func isZero(b []byte) bool {
	var zeros [Page]byte
	return bytes.Equal(b, zeros[:len(b)])
}

// PunchZeros makes holes of the pages of a file that hold nothing but zeros.
// On a file system without holes it does nothing.
func PunchZeros(ctx context.Context, f *os.File, size int64) error {
	extents, err := Extents(f, size)
	if err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for _, r := range extents {
		for off := r.Start; off < r.End; off += chunk {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			b := buf[:min(chunk, r.End-off)]
			if _, err := f.ReadAt(b, off); err != nil {
				return fmt.Errorf("read memory at %#x: %w", off, err)
			}
			if err := punch(f, b, off); errors.Is(err, unix.EOPNOTSUPP) {
				return nil
			} else if err != nil {
				return fmt.Errorf("make a hole in %s: %w", f.Name(), err)
			}
		}
	}
	return nil
}

func punch(f *os.File, b []byte, off int64) error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	for len(b) > 0 {
		zeros, data := split(b)
		if zeros > 0 {
			if err := unix.Fallocate(int(f.Fd()), mode, off, int64(zeros)); err != nil {
				return err
			}
		}
		b = b[zeros+data:]
		off += int64(zeros + data)
	}
	return nil
}
