package memserver

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/fcvm/fcvm/internal/uffd"
)

// What a peer may say at first.
const (
	maxHandshake = 64 << 10 // bytes
	maxRegions   = 128      // Firecracker has one or two, and some for hotplugged memory
	maxReads     = 64       // pieces in which the message may arrive
	hugePage     = 2 << 20  // bytes
)

// errHandshake: a peer's first message is not what it should be.
var errHandshake = errors.New("handshake")

// message is the first thing that a peer sends.
type message struct {
	body []byte
	fd   int // -1: none
}

// close drops a descriptor that nobody wants.
func (m message) close() {
	if m.fd >= 0 {
		_ = syscall.Close(m.fd)
	}
}

// receive reads the first message, up to the end of its JSON value, or to the
// line's end if it is a request to this package. The descriptor of an error is
// closed.
func receive(c *net.UnixConn) (m message, err error) {
	var fds []int
	defer func() {
		if err != nil {
			closeAll(fds)
			m = message{fd: -1}
		}
	}()
	m.fd = -1
	buf := make([]byte, maxHandshake)
	oob := make([]byte, syscall.CmsgSpace(4*4)) // room for more than the one that is allowed
	n := 0
	for reads := 0; ; reads++ {
		if n == len(buf) || reads == maxReads {
			return m, fmt.Errorf("%w: it is longer than %d bytes, or in more than %d pieces", errHandshake, maxHandshake, maxReads)
		}
		got, oobn, flags, _, err := c.ReadMsgUnix(buf[n:], oob)
		if err != nil {
			return m, fmt.Errorf("%w: %w", errHandshake, err)
		}
		more, err := descriptors(oob[:oobn])
		fds = append(fds, more...)
		switch {
		case err != nil:
			return m, fmt.Errorf("%w: %w", errHandshake, err)
		case flags&syscall.MSG_CTRUNC != 0 || len(fds) > 1:
			return m, fmt.Errorf("%w: more than one descriptor", errHandshake)
		case got == 0:
			return m, fmt.Errorf("%w: %w", errHandshake, io.ErrUnexpectedEOF)
		}
		n += got
		if buf[0] != '[' && buf[0] != '{' {
			return m, fmt.Errorf("%w: it is not JSON", errHandshake)
		}
		if end := slices.Index(buf[:n], '\n'); buf[0] == '{' && end >= 0 || buf[0] == '[' && json.Valid(buf[:n]) {
			break
		}
	}
	m.body = buf[:n]
	if len(fds) == 1 {
		m.fd = fds[0]
	}
	return m, nil
}

func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		more, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}

// mapping is one region as Firecracker describes it (GuestRegionUffdMapping in
// its src/vmm/src/persist.rs).
type mapping struct {
	Address  uint64  `json:"base_host_virt_addr"`
	Size     uint64  `json:"size"`
	Offset   uint64  `json:"offset"`
	PageSize *uint64 `json:"page_size"` // bytes
	// PageSizeKiB is that of older releases. In spite of its name some of them
	// have it in bytes. The oldest have neither, and no huge pages.
	PageSizeKiB *uint64 `json:"page_size_kib"`
}

func (m mapping) page(system uint64) (uint64, error) {
	var size uint64
	switch {
	case m.PageSize != nil:
		size = *m.PageSize
	case m.PageSizeKiB == nil:
		size = system
	case *m.PageSizeKiB == system || *m.PageSizeKiB == hugePage:
		size = *m.PageSizeKiB
	case *m.PageSizeKiB <= hugePage>>10:
		size = *m.PageSizeKiB << 10
	}
	if size != system && size != hugePage {
		return 0, fmt.Errorf("pages of another size than %d and %d bytes", system, hugePage)
	}
	return size, nil
}

// region is a part of the memory file and where the VMM has it. All numbers
// are multiples of the page size.
type region struct{ addr, size, offset uint64 }

func (r region) end() uint64 { return r.addr + r.size }

// layout is where a VMM has the pages of the memory file. Pages are numbered by
// their offset in the file.
type layout struct {
	page    uint64   // size, bytes
	regions []region // by address
}

// parseLayout checks what a VMM says: each page of the file at one address at
// most, and no address twice.
func parseLayout(b []byte, system, memory uint64) (layout, error) {
	var maps []mapping
	if err := json.Unmarshal(b, &maps); err != nil {
		return layout{}, fmt.Errorf("%w: %w", errHandshake, err)
	}
	if len(maps) == 0 || len(maps) > maxRegions {
		return layout{}, fmt.Errorf("%w: %d regions of memory, allowed are 1 to %d", errHandshake, len(maps), maxRegions)
	}
	var l layout
	for i, m := range maps {
		page, err := m.page(system)
		if err == nil && i > 0 && page != l.page {
			err = errors.New("pages of two sizes")
		}
		if err == nil {
			l.page = page
			err = m.check(page, memory)
		}
		if err != nil {
			return layout{}, fmt.Errorf("%w: region %d: %w", errHandshake, i, err)
		}
		l.regions = append(l.regions, region{m.Address, m.Size, m.Offset})
	}
	slices.SortFunc(l.regions, func(a, b region) int { return cmp.Compare(a.offset, b.offset) })
	for i, r := range l.regions[1:] {
		if before := l.regions[i]; before.offset+before.size > r.offset {
			return layout{}, fmt.Errorf("%w: regions share a part of the file", errHandshake)
		}
	}
	slices.SortFunc(l.regions, func(a, b region) int { return cmp.Compare(a.addr, b.addr) })
	for i, r := range l.regions[1:] {
		if l.regions[i].end() > r.addr {
			return layout{}, fmt.Errorf("%w: regions share addresses", errHandshake)
		}
	}
	return l, nil
}

func (m mapping) check(page, memory uint64) error {
	switch {
	case m.Size == 0:
		return errors.New("it is empty")
	case (m.Address|m.Size|m.Offset)%page != 0:
		return fmt.Errorf("it is not aligned to pages of %d bytes", page)
	case m.Offset > memory || m.Size > memory-m.Offset:
		return fmt.Errorf("%d bytes at offset %d are not in a memory file of %d bytes", m.Size, m.Offset, memory)
	case m.Address+m.Size < m.Address:
		return errors.New("its addresses wrap around")
	}
	return nil
}

// at finds the page at an address, and its region.
func (l layout) at(addr uint64) (page int, r region, ok bool) {
	i, found := slices.BinarySearchFunc(l.regions, addr, func(r region, a uint64) int { return cmp.Compare(r.addr, a) })
	if !found {
		i--
	}
	if i < 0 || addr >= l.regions[i].end() {
		return 0, region{}, false
	}
	r = l.regions[i]
	return int((r.offset + addr - r.addr) / l.page), r, true
}

// of finds the region that has a page of the file.
func (l layout) of(page int) (region, bool) {
	off := uint64(page) * l.page
	for _, r := range l.regions {
		if off >= r.offset && off-r.offset < r.size {
			return r, true
		}
	}
	return region{}, false
}

// span is the region's pages: from first up to, but not including, end.
func (l layout) span(r region) (first, end int) {
	return int(r.offset / l.page), int((r.offset + r.size) / l.page)
}

// address is where the region has a page.
func (l layout) address(r region, page int) uint64 {
	return r.addr + uint64(page)*l.page - r.offset
}

// adopt makes a VM's memory of its first message. If fd is not nil, a VM waits
// for its pages, also in case of an error.
func adopt(m message, memory int64) (fd *uffd.FD, l layout, err error) {
	if m.fd < 0 {
		return nil, layout{}, fmt.Errorf("%w: no descriptor came with it", errHandshake)
	}
	fd, err = uffd.FromFD(m.fd)
	if err != nil {
		return nil, layout{}, fmt.Errorf("%w: %w", errHandshake, err)
	}
	l, err = parseLayout(m.body, uint64(os.Getpagesize()), uint64(memory))
	return fd, l, err
}
