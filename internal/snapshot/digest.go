package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// digestChunk is the unit in which zeros are left out of a digest, bytes.
const digestChunk = 64 << 10

const digestPrefix = "sparse-sha256:"

// Digest returns the checksum of a file's contents, which is the same whether
// zeros in it are holes or not: the SHA-256 of the file's length and of every
// chunk of 64 KiB that is not all zeros, each after its offset; numbers are
// big-endian, of 8 bytes. So what is a hole is not read.
func Digest(ctx context.Context, path string) (string, error) {
	digest, _, err := digestOf(ctx, path)
	return digest, err
}

// digestOf returns how many bytes the digest is of, too: what an archive has of
// the file.
func digestOf(ctx context.Context, path string) (digest string, data int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }()
	return digestOfFile(ctx, f)
}

func digestOfFile(ctx context.Context, f *os.File) (digest string, data int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	var number [8]byte
	put := func(n int64) {
		binary.BigEndian.PutUint64(number[:], uint64(n))
		_, _ = h.Write(number[:]) // a hash takes everything
	}
	put(st.Size())
	err = chunks(ctx, f, st.Size(), func(off int64, p []byte) error {
		put(off)
		_, _ = h.Write(p)
		data += int64(len(p))
		return nil
	})
	if err != nil {
		return "", 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return digestPrefix + hex.EncodeToString(h.Sum(nil)), data, nil
}

// zerosDigest is the Digest of a file of nothing but zeros.
func zerosDigest(size int64) string {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(size)))
	return digestPrefix + hex.EncodeToString(sum[:])
}

// chunks calls f with each chunk of a file that is not all zeros.
func chunks(ctx context.Context, r *os.File, size int64, f func(off int64, p []byte) error) error {
	buf := make([]byte, digestChunk)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		data, err := r.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole
		}
		if err == nil {
			off = max(off, data/digestChunk*digestChunk)
		} // else the file system knows no holes
		n, err := r.ReadAt(buf[:min(digestChunk, size-off)], off)
		if atEnd := errors.Is(err, io.EOF) && int64(n) == size-off; err != nil && !atEnd {
			return err
		}
		if p := buf[:n]; !allZero(p) {
			if err := f(off, p); err != nil {
				return err
			}
		}
		off += digestChunk
	}
	return nil
}

// allZero compares each byte with the one before it, as fast as memory is read.
func allZero(p []byte) bool {
	return len(p) == 0 || (p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:]))
}
