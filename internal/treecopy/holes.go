package treecopy

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxMap is how much of a stream is kept for the map of a sparse file, bytes:
// as much as archive/tar takes for one, and the headers around it.
const maxMap = 1<<20 + 8*tarBlock

// source is the stream below archive/tar. That reads a hole as zeros, and a
// stream can announce terabytes of them in a line. So the map of a sparse file
// is kept when it goes by, and the data is read past archive/tar.
type source struct {
	r    io.Reader
	n    int64  // bytes that were read
	keep bool   // what goes by may be a map
	tail []byte // what went by last
	past int64  // bytes that archive/tar has not seen go by
}

// Read is archive/tar's, which passes over data that was read past it.
func (s *source) Read(p []byte) (int, error) {
	if s.past > 0 {
		n := int(min(int64(len(p)), s.past))
		clear(p[:n])
		s.past -= int64(n)
		return n, nil
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	if s.keep {
		if s.tail = append(s.tail, p[:n]...); len(s.tail) > 2*maxMap {
			s.tail = append(s.tail[:0], s.tail[len(s.tail)-maxMap:]...)
		}
	}
	return n, err
}

// data is the next n bytes of an entry, past archive/tar.
func (s *source) data(n int64) io.Reader { return io.LimitReader(dataReader{s}, n) }

type dataReader struct{ *source }

func (d dataReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.n += int64(n)
	d.past += int64(n)
	return n, err
}

// extents says where the data of a file belongs whose header was read last;
// false: it has no map. The formats are those that archive/tar knows.
func (s *source) extents(h *tar.Header) (list []extent, sparse bool, err error) {
	version := h.PAXRecords["GNU.sparse.major"] + "." + h.PAXRecords["GNU.sparse.minor"]
	records := h.PAXRecords["GNU.sparse.map"]
	var numbers []int64
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		numbers = oldNumbers(s.tail)
	case version == "1.0":
		numbers = listedNumbers(s.tail)
	case version == "0.0", version == "0.1", version == "." && records != "":
		numbers = parseNumbers(strings.FieldsFunc(records, func(r rune) bool { return r == ',' }))
	default:
		return nil, false, nil
	}
	if len(numbers)%2 != 0 {
		numbers = []int64{-1, -1}
	}
	var end int64
	for i := 0; i < len(numbers); i += 2 {
		e := extent{numbers[i], numbers[i+1]}
		if e.off < end || e.len < 0 || e.len > h.Size-e.off {
			return nil, false, fmt.Errorf("%w: %s has no valid map of its holes", ErrStream, h.Name)
		}
		end = e.off + e.len
		list = append(list, e)
	}
	return list, true, nil
}

// listedNumbers reads the map of PAX's format 1.0, which follows the header:
// blocks of decimal numbers, each in a line, the number of pairs first.
func listedNumbers(tail []byte) []int64 {
	at := len(tail)
	for at >= tarBlock && len(bytes.Trim(tail[at-tarBlock:at], "0123456789\n\x00")) == 0 {
		at -= tarBlock
	}
	numbers := parseNumbers(strings.Fields(string(bytes.TrimRight(tail[at:], "\x00"))))
	if len(numbers) == 0 || numbers[0] < 0 || int64(len(numbers)-1) != 2*numbers[0] {
		return []int64{-1, -1}
	}
	return numbers[1:]
}

// parseNumbers has -1 for what is none.
func parseNumbers(words []string) []int64 {
	var numbers []int64
	for _, w := range words {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			n = -1
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// Where GNU tar's own format has a map: pairs of 24 bytes, and whether another
// block of them follows.
const (
	oldMagic = "ustar  \x00" // at 257
	oldPair  = 24

	oldHeaderMap, oldHeaderMore = 386, 482
	oldBlockMap, oldBlockMore   = 0, 504
)

// oldNumbers reads the map that is in a header of GNU tar's, and in the blocks
// that follow it.
func oldNumbers(tail []byte) (numbers []int64) {
	at := len(tail) - tarBlock
	for at >= 0 && (tail[at+156] != tar.TypeGNUSparse || string(tail[at+257:at+265]) != oldMagic) {
		at -= tarBlock
	}
	if at < 0 {
		return []int64{-1, -1}
	}
	pairs := tail[at+oldHeaderMap : at+oldHeaderMore]
	for more := tail[at+oldHeaderMore] > 0; ; more = tail[at+oldBlockMore] > 0 {
		for ; len(pairs) >= oldPair && pairs[0] != 0; pairs = pairs[oldPair:] {
			numbers = append(numbers, oldNumber(pairs[:12]), oldNumber(pairs[12:oldPair]))
		}
		if at += tarBlock; !more || at >= len(tail) {
			return numbers
		}
		pairs = tail[at+oldBlockMap : at+oldBlockMore]
	}
}

// oldNumber is octal, or binary if its first bit is set; -1: neither.
func oldNumber(field []byte) int64 {
	if field[0] == 0x80 && binary.BigEndian.Uint32(field) == 0x80<<24 {
		return int64(binary.BigEndian.Uint64(field[4:])) // too large a one is negative, and refused
	}
	n, err := strconv.ParseInt(strings.Trim(string(field), " \x00"), 8, 64)
	if err != nil {
		return -1
	}
	return n
}
