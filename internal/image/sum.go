package image

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

const (
	sumPrefix = "xxh64:"
	sumBuffer = 1 << 20
)

// sumDisk returns a checksum of a disk: of where its data is and of the data.
// It is there to find what has gone wrong with a file that is ours; it is no
// digest that somebody else could be asked for. Holes cost nothing.
func sumDisk(ctx context.Context, path string, read func(int64)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := xxhash.New()
	buf := make([]byte, sumBuffer)
	number := func(n int64) { _, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))) }
	number(st.Size())
	for off := int64(0); off < st.Size(); {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		at, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		}
		if err != nil {
			at = off // a file system that knows no holes
		}
		// Zeros that were written and holes are the same: what counts is what
		// is read. So all is summed in blocks that begin at multiples of their size.
		off = at - at%sumBuffer
		n, err := f.ReadAt(buf[:min(sumBuffer, st.Size()-off)], off)
		if err != nil {
			return "", err
		}
		if !zero(buf[:n]) {
			number(off)
			_, _ = h.Write(buf[:n])
		}
		if read != nil {
			read(int64(n))
		}
		off += int64(n)
	}
	return sumPrefix + hex.EncodeToString(h.Sum(nil)), nil
}

func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	return strings.Trim(string(b), "\x00") == ""
}

// checkDisk compares a disk with its record.
func checkDisk(ctx context.Context, rec record, path string, read func(int64)) error {
	if rec.Sum == "" {
		return fmt.Errorf("%w: it was made by an older fcvm, which kept no checksum of it", errNoSum)
	}
	sum, err := sumDisk(ctx, path, read)
	if err != nil {
		return err
	}
	if sum != rec.Sum {
		return fmt.Errorf("%w: the cached disk has checksum %s, its record says %s", ErrCorrupt, sum, rec.Sum)
	}
	return nil
}

// errNoSum: whether a disk is damaged cannot be told.
var errNoSum = errors.New("the disk cannot be checked")
