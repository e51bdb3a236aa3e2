package memserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fcvm/fcvm/internal/atomicfile"
)

// A working set's file, in little-endian order:
//
//	 0  8 bytes  "fcvmwset"
//	 8  uint32   version: 1
//	12  uint32   size of a page, bytes
//	16  uint64   size of the memory file that it belongs to, bytes
//	24  uint64   number of pages in the set
//	32  uint64…  one bit for each page of the memory file, from the lowest bit
//	             of the first word on
//	             SHA-256 of all that is before it
const (
	setMagic      = "fcvmwset"
	setVersion    = 1
	setHeaderSize = 32
)

// encodeSet makes the file's content of a set of pages.
func encodeSet(set bitmap, page, memory int64) []byte {
	b := make([]byte, 0, setHeaderSize+len(set)*8+sha256.Size)
	b = append(b, setMagic...)
	b = binary.LittleEndian.AppendUint32(b, setVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(page))
	b = binary.LittleEndian.AppendUint64(b, uint64(memory))
	b = binary.LittleEndian.AppendUint64(b, uint64(set.count()))
	for _, w := range set {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeSet checks everything. The set that it returns has no page outside of
// the memory.
func decodeSet(b []byte, page, memory int64) (bitmap, error) {
	pages := int(memory / page)
	set := newBitmap(pages)
	if want := setHeaderSize + len(set)*8 + sha256.Size; len(b) != want {
		return nil, fmt.Errorf("it has %d bytes, for this memory file it should have %d", len(b), want)
	}
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	switch {
	case string(b[:8]) != setMagic:
		return nil, errors.New("it is of another kind")
	case u32(b[8:]) != setVersion:
		return nil, fmt.Errorf("it has version %d, known is %d", u32(b[8:]), setVersion)
	case !bytes.Equal(sum[:], b[len(body):]):
		return nil, errors.New("its checksum is wrong")
	case int64(u32(b[12:])) != page || u64(b[16:]) != uint64(memory):
		return nil, errors.New("it belongs to another memory file")
	}
	for i := range set {
		set[i] = u64(body[setHeaderSize+i*8:])
	}
	if last := pages % 64; last != 0 && set[len(set)-1]>>last != 0 {
		return nil, errors.New("it has pages outside of the memory")
	}
	if uint64(set.count()) != u64(b[24:]) {
		return nil, errors.New("its number of pages is wrong")
	}
	return set, nil
}

// loadSet returns nil without an error when there is none.
func loadSet(path string, page, memory int64) (bitmap, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if want := setHeaderSize + int64(len(newBitmap(int(memory/page))))*8 + sha256.Size; st.Size() != want { // before it is read
		return nil, fmt.Errorf("it has %d bytes, for this memory file it should have %d", st.Size(), want)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeSet(b, page, memory)
}

func saveSet(path string, set bitmap, page, memory int64) error {
	return atomicfile.Write(path, encodeSet(set, page, memory), 0o600)
}
