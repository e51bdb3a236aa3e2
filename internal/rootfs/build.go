package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	xattrPrefix = "SCHILY.xattr." // of PAX records, as GNU tar and libarchive write them
	readBuffer  = 1 << 20
	maxTrailer  = 64 << 20 // bytes behind an archive's end: padding
)

// Options for BuildImage and ConvertTar.
type Options struct {
	Limits Limits
	// Prefix is the directory of the disk that holds the tree; empty: its root.
	Prefix string
	// Progress, if set, is told of bytes of the archives that were read.
	Progress func(bytes int64)
}

// Stats says what went into a disk.
type Stats struct {
	Entries int
	Bytes   int64 // of regular files
}

// BuildImage merges layers, lowest first, into one ext4 file system in dst,
// which must be empty. On an error dst is of no use.
func BuildImage(ctx context.Context, layers []Layer, dst *os.File, o Options) (Stats, error) {
	t, err := merge(ctx, layers, o)
	if err != nil {
		return Stats{}, err
	}
	err = writeExt4(dst, t.bytes, t.entries+t.made, func(w *tar.Writer) error {
		e := emitter{ctx: ctx, w: w, prefix: o.Prefix}
		return e.all(t, layers, o)
	})
	if err != nil {
		return Stats{}, noSpace(err, filepath.Dir(dst.Name()))
	}
	return Stats{Entries: t.entries, Bytes: t.bytes}, nil
}

// corrupt marks errors of the archive's form; what else went wrong stays
// what it is.
func corrupt(err error) error {
	for _, known := range []error{ErrCorrupt, ErrTooLarge, ErrUnsafe, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// layerReader reads a layer's uncompressed archive.
type layerReader struct {
	io.Reader
	raw    io.ReadCloser
	closer func()
	sum    hash.Hash
	want   string
}

func openLayer(ctx context.Context, l Layer, progress func(int64)) (*layerReader, error) {
	raw, err := l.Open()
	if err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(&countingReader{ctx: ctx, r: raw, progress: progress}, readBuffer)
	dec, closer, err := decompress(br)
	if err != nil {
		_ = raw.Close()
		return nil, corrupt(err)
	}
	lr := &layerReader{Reader: dec, raw: raw, closer: closer, want: l.DiffID}
	if l.DiffID != "" {
		lr.sum = sha256.New()
		lr.Reader = io.TeeReader(dec, lr.sum)
	}
	return lr, nil
}

// verify reads to the end, past the archive's own, so that the digests of all
// bytes are known, and compares them.
func (r *layerReader) verify() error {
	n, err := io.CopyN(io.Discard, r.Reader, maxTrailer+1)
	if err == nil {
		return fmt.Errorf("%w: over %d MiB after the archive's end", ErrTooLarge, maxTrailer>>20)
	}
	if !errors.Is(err, io.EOF) {
		return corrupt(fmt.Errorf("%d bytes after its end: %w", n, err))
	}
	if _, err := io.Copy(io.Discard, r.raw); err != nil {
		return corrupt(err)
	}
	if r.sum == nil {
		return nil
	}
	if got := "sha256:" + hex.EncodeToString(r.sum.Sum(nil)); got != r.want {
		return fmt.Errorf("%w: its content has digest %s, the image says %s", ErrCorrupt, got, r.want)
	}
	return nil
}

func (r *layerReader) Close() error {
	r.closer()
	return r.raw.Close()
}

// Uncompress writes a layer's archive to w as it is without its compression,
// and returns its size. It fails if its digest is not the layer's.
func Uncompress(ctx context.Context, l Layer, w io.Writer) (int64, error) {
	r, err := openLayer(ctx, l, nil)
	if err != nil {
		return 0, fmt.Errorf("read layer %s: %w", l.Name, err)
	}
	defer func() { _ = r.Close() }()
	in := &FailReader{R: r.Reader}
	limit := DefaultLimits.Bytes + streamSlack
	n, err := io.Copy(w, io.LimitReader(in, limit+1))
	switch {
	case n > limit:
		err = fmt.Errorf("%w: over %d MiB", ErrTooLarge, limit>>20)
	case in.Err != nil:
		err = corrupt(in.Err)
	case err == nil:
		err = r.verify()
	}
	if err != nil {
		return n, fmt.Errorf("read layer %s: %w", l.Name, err)
	}
	return n, nil
}

// FailReader remembers the error of its reader, to tell it from a writer's when
// one is copied to the other.
type FailReader struct {
	R   io.Reader
	Err error // the first but io.EOF; nil: there was none
}

func (f *FailReader) Read(p []byte) (int, error) {
	n, err := f.R.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && f.Err == nil {
		f.Err = err
	}
	return n, err
}

// decompress looks at the first bytes: media types are not always right.
func decompress(br *bufio.Reader) (io.Reader, func(), error) {
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch s := string(magic); {
	case strings.HasPrefix(s, "\x1f\x8b"):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case s == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(512<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	default:
		return br, func() {}, nil
	}
}

type countingReader struct {
	ctx      context.Context
	r        io.Reader
	progress func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if c.progress != nil {
		c.progress(int64(n))
	}
	return n, err
}

// writeExt4 makes a file system in dst of the archive that emit writes.
func writeExt4(dst *os.File, bytes int64, entries int, emit func(*tar.Writer) error) error {
	pr, pw := io.Pipe()
	emitted := make(chan error, 1)
	go func() {
		bw := bufio.NewWriterSize(pw, readBuffer) // a pipe hands over every single write
		w := tar.NewWriter(bw)
		err := emit(w)
		if err == nil {
			err = w.Close()
		}
		if err == nil {
			err = bw.Flush()
		}
		_ = pw.CloseWithError(err)
		emitted <- err
	}()
	out := &sparseWriter{f: dst}
	err := tar2ext4.ConvertTarToExt4(bufio.NewReaderSize(pr, readBuffer), out, tar2ext4.MaximumDiskSize(diskSize(bytes, entries)))
	_ = pr.CloseWithError(err) // ends the emitter if the converter stopped first
	if eerr := <-emitted; eerr != nil && (err == nil || errors.Is(err, eerr)) {
		return eerr // the cause, without the converter's words around it
	}
	if err != nil {
		return fmt.Errorf("write file system: %w", err)
	}
	if err := out.finish(); err != nil {
		return fmt.Errorf("write file system: %w", err)
	}
	return padInodeBitmaps(dst)
}

// diskSize is an upper bound of the file system's size: data; per entry a
// block that is partly used, one of extended attributes, and one for inode,
// name and bitmaps.
func diskSize(bytes int64, entries int) int64 {
	const slack, minimum = 64 << 20, 1 << 30
	return max(minimum, bytes+bytes/16+int64(entries)*3*blockSize+slack)
}
