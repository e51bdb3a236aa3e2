package treecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tarBlock = 512
	// maxExtents bounds the map of a sparse file; one with more is sent in full.
	maxExtents = 8192
	holeBlock  = 4096 // bytes of zeros that become a hole
)

type extent struct{ off, len int64 }

// dataExtents lists where a file has data; false: it is not worth it, or the
// file system does not say.
func dataExtents(f *os.File, size int64) ([]extent, bool) {
	var all []extent
	for off := int64(0); off < size; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, false
		}
		if start >= size { // it has grown since it was measured
			break
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil || end <= start || len(all) == maxExtents {
			return nil, false
		}
		end = min(end, size)
		all = append(all, extent{start, end - start})
		off = end
	}
	return all, true
}

// addSparse writes a file in PAX's sparse format 1.0: extended records, and
// before the data a map of where it belongs. archive/tar reads that, but does
// not write it.
// https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html
func (p *packer) addSparse(h *tar.Header, f *os.File, extents []extent) error {
	if err := p.tar.Flush(); err != nil { // what follows goes past it
		return err
	}
	if n := len(extents); n == 0 || extents[n-1].off+extents[n-1].len < h.Size {
		extents = append(extents, extent{h.Size, 0}) // says where the last hole ends
	}
	table := sparseTable(extents)
	size := int64(len(table))
	for _, e := range extents {
		size += e.len
	}
	attrs, err := p.readXattrs(f)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	pairs := [][2]string{
		{"GNU.sparse.major", "1"},
		{"GNU.sparse.minor", "0"},
		{"GNU.sparse.name", h.Name},
		{"GNU.sparse.realsize", strconv.FormatInt(h.Size, 10)},
		{"size", strconv.FormatInt(size, 10)},
		{"mtime", paxTime(h.ModTime)},
		{"uid", strconv.Itoa(h.Uid)},
		{"gid", strconv.Itoa(h.Gid)},
	}
	for k, v := range attrs {
		pairs = append(pairs, [2]string{k, v})
	}
	records := paxRecords(pairs)
	var head bytes.Buffer
	base := path.Base(h.Name)
	base = base[:min(len(base), 60)]
	head.Write(ustarHeader("PaxHeaders.0/"+base, tar.TypeXHeader, 0o644, int64(len(records)), time.Time{}))
	head.Write(padded(records))
	head.Write(ustarHeader("GNUSparseFile.0/"+base, tar.TypeReg, h.Mode, size, h.ModTime))
	head.Write(table)
	if _, err := p.out.Write(head.Bytes()); err != nil {
		return err
	}
	for _, e := range extents {
		if err := copyExactly(p.out, io.NewSectionReader(f, e.off, e.len), e.len, h.Name); err != nil {
			return err
		}
	}
	_, err = p.out.Write(make([]byte, -size&(tarBlock-1)))
	return err
}

// sparseTable is the number of extents, then offset and length of each, one
// number to a line, up to a full block.
func sparseTable(extents []extent) []byte {
	b := fmt.Appendf(nil, "%d\n", len(extents))
	for _, e := range extents {
		b = fmt.Appendf(b, "%d\n%d\n", e.off, e.len)
	}
	return padded(b)
}

func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&(tarBlock-1))...) }

// paxRecords encodes "LENGTH KEY=VALUE\n", where the length counts itself.
func paxRecords(records [][2]string) []byte {
	var b []byte
	for _, r := range records {
		rest := " " + r[0] + "=" + r[1] + "\n"
		n := len(rest)
		for n != len(rest)+len(strconv.Itoa(n)) {
			n = len(rest) + len(strconv.Itoa(n))
		}
		b = append(append(b, strconv.Itoa(n)...), rest...)
	}
	return b
}

func paxTime(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// ustarHeader is a header block; numbers that do not fit are in the extended
// records. https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
func ustarHeader(name string, typ byte, mode, size int64, mtime time.Time) []byte {
	b := make([]byte, tarBlock)
	octal := func(off, width int, v int64) {
		if v < 0 || v >= 1<<(3*(width-1)) {
			v = 0
		}
		copy(b[off:], fmt.Sprintf("%0*o", width-1, v))
	}
	copy(b[:100], name)
	octal(100, 8, mode&0o7777)
	octal(108, 8, 0)
	octal(116, 8, 0)
	octal(124, 12, size)
	octal(136, 12, mtime.Unix())
	b[156] = typ
	copy(b[257:], "ustar\x0000")
	copy(b[148:156], "        ") // the sum counts its own field as spaces
	var sum int64
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// fill writes a file of the stream to an empty one. Its holes are left out, and
// blocks of zeros.
func (u *unpacker) fill(f *os.File, h *tar.Header) error {
	extents, sparse, err := u.in.extents(h)
	if err == nil {
		err = f.Truncate(h.Size)
	}
	if err != nil {
		return err
	}
	if !sparse {
		return writeAt(f, 0, u.tar, h.Size)
	}
	for _, e := range extents {
		if err := writeAt(f, e.off, u.in.data(e.len), e.len); err != nil {
			return err
		}
	}
	return nil
}

// writeAt writes size bytes to a hole and leaves blocks of zeros out.
func writeAt(f *os.File, off int64, r io.Reader, size int64) error {
	end := off + size
	zeros := make([]byte, holeBlock)
	buf := make([]byte, min(size, 64*holeBlock))
	for off < end {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), end-off)])
		for done := 0; done < n; {
			run := 0
			for done+run < n {
				m := min(holeBlock, n-done-run)
				if bytes.Equal(buf[done+run:done+run+m], zeros[:m]) {
					break
				}
				run += m
			}
			if run == 0 {
				done += holeBlock
				continue
			}
			if _, err := f.WriteAt(buf[done:done+run], off+int64(done)); err != nil {
				return err
			}
			done += run
		}
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
