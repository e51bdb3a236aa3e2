package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
)

// guestMemory is a guest's memory as the host has it.
type guestMemory struct {
	// file is the memory itself of a guest that was booted: a file without a
	// name, which QEMU maps shared. Of one that was restored it is the
	// snapshot's, which QEMU maps privately: what the guest has written since is
	// in QEMU's process only.
	file    *os.File
	size    int64 // bytes
	private bool
}

// newMemory makes memory for a guest to boot in. It takes up room as it is
// used, in the account of the process that uses it.
func newMemory(mib int) (*guestMemory, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the guest's memory: %w", os.NewSyscallError("memfd_create", err))
	}
	m := &guestMemory{file: os.NewFile(uintptr(fd), "guest memory"), size: int64(mib) << 20}
	if err := m.file.Truncate(m.size); err != nil {
		_ = m.file.Close()
		return nil, fmt.Errorf("make the guest's memory: %w", err)
	}
	return m, nil
}

// openMemory opens a snapshot's memory.
func openMemory(path string, mib int) (*guestMemory, error) {
	if err := vmm.CheckMemory(path, mib); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open a snapshot's memory: %w", err)
	}
	return &guestMemory{file: f, size: int64(mib) << 20, private: true}, nil
}

// keepHoles is a filter of system calls for a QEMU that opens a snapshot's
// memory for writing, though it maps it privately: all before 8.2 do. What a
// guest puts into its balloon, asked to or not, such a QEMU takes away from the
// file, and so from all other guests. The filter has it fail to make holes of
// one page, which are the balloon's. (A disk whose guest discards as little is
// taken for one that cannot discard.)
func keepHoles() []unix.SockFilter {
	// Offsets into struct seccomp_data, of the lower halves of arguments.
	const nr, mode, length = 0, 16 + 8*1, 16 + 8*3
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(test uint16, k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | test, K: k, Jf: skip}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	return []unix.SockFilter{
		load(nr), unless(unix.BPF_JEQ, unix.SYS_FALLOCATE, 5),
		load(mode), unless(unix.BPF_JSET, unix.FALLOC_FL_PUNCH_HOLE, 3),
		load(length), unless(unix.BPF_JEQ, uint32(os.Getpagesize()), 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EOPNOTSUPP)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
}

func (m *guestMemory) Close() error { return m.file.Close() }

// save copies into dst, which is a hole as large as the memory, what nobody but
// the machine has: all of it, or what was written since the machine was
// restored, and returns where that is. The machine must be paused.
func (m *guestMemory) save(ctx context.Context, pid int, dst *os.File) ([]memimage.Range, error) {
	if !m.private {
		extents, err := memimage.Extents(m.file, m.size)
		if err != nil {
			return nil, err
		}
		return extents, memimage.Copy(ctx, dst, m.file, extents)
	}
	// QEMU's own ways to save memory all write the whole of it into a stream.
	// The kernel knows which pages are copies of the process's own.
	at, err := m.mapping(pid)
	if err != nil {
		return nil, err
	}
	own, err := ownPages(pid, at, m.size)
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, fmt.Errorf("read QEMU's memory: %w", err)
	}
	defer func() { _ = mem.Close() }()
	return own, memimage.Copy(ctx, dst, io.NewSectionReader(mem, at, m.size), own)
}

// complete copies into dst what save has left to the snapshot that the machine
// was restored from.
func (m *guestMemory) complete(ctx context.Context, dst *os.File, saved []memimage.Range) error {
	if !m.private {
		return nil
	}
	extents, err := memimage.Extents(m.file, m.size)
	if err != nil {
		return err
	}
	return memimage.Copy(ctx, dst, m.file, memimage.Without(extents, saved))
}

// mapping returns the address at which a process has mapped the file.
func (m *guestMemory) mapping(pid int) (int64, error) {
	file, err := m.name()
	if err != nil {
		return 0, err
	}
	areas, err := mappings(pid)
	if err != nil {
		return 0, err
	}
	return findMapping(areas, file, m.size)
}

// name is what the file is called in maps. It says another device than stat(2)
// on some file systems, so a page is mapped here, for a moment, to see.
func (m *guestMemory) name() (string, error) {
	page, err := unix.Mmap(int(m.file.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return "", fmt.Errorf("look at the guest's memory: %w", os.NewSyscallError("mmap", err))
	}
	defer func() { _ = unix.Munmap(page) }()
	areas, err := mappings(os.Getpid())
	if err != nil {
		return "", err
	}
	here := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(page))))
	i := slices.IndexFunc(areas, func(a area) bool { return a.start <= here && here < a.end })
	if i < 0 {
		return "", errMapping
	}
	return areas[i].file, nil
}

var errMapping = errors.New("the guest's memory is not mapped in QEMU as it should be")

// area is a part of a process's address space.
type area struct {
	start, end, offset uint64
	private            bool
	file               string // device and inode
}

// mappings reads a process's maps: proc_pid_maps(5).
func mappings(pid int) ([]area, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("look for the guest's memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parseMaps(f)
}

func parseMaps(r io.Reader) ([]area, error) {
	var all []area
	s := bufio.NewScanner(r)
	for s.Scan() {
		var (
			a                    area
			perms, device, inode string
		)
		if _, err := fmt.Sscanf(s.Text(), "%x-%x %s %x %s %s", &a.start, &a.end, &perms, &a.offset, &device, &inode); err != nil {
			return nil, fmt.Errorf("%w: %q: %w", errMapping, s.Text(), err)
		}
		a.private, a.file = strings.HasSuffix(perms, "p"), device+" "+inode
		all = append(all, a)
	}
	return all, s.Err()
}

// findMapping returns where a file is mapped, which must be once, wholly and
// privately, in one or more parts that follow one another.
func findMapping(areas []area, file string, size int64) (int64, error) {
	var start, next uint64
	for _, a := range areas {
		if a.file != file {
			continue
		}
		if next == 0 {
			start, next = a.start, a.start
		}
		if a.start != next || a.offset != a.start-start || !a.private {
			return 0, fmt.Errorf("%w: %+v", errMapping, a)
		}
		next = a.end
	}
	if next-start != uint64(size) {
		return 0, fmt.Errorf("%w: %d bytes of %d", errMapping, next-start, size)
	}
	return int64(start), nil
}

// Bits of an entry of a process's pagemap:
// https://docs.kernel.org/admin-guide/mm/pagemap.html
const (
	pagemapEntry   = 8 // bytes
	pagemapFile    = 1 << 61
	pagemapSwapped = 1 << 62
	pagemapPresent = 1 << 63
)

// ownPages returns which pages of a private mapping, at address at, the process
// has written: they are no longer the file's.
func ownPages(pid int, at, size int64) ([]memimage.Range, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, fmt.Errorf("look for pages that the guest has written: %w", err)
	}
	defer func() { _ = f.Close() }()
	page := int64(os.Getpagesize())
	r := bufio.NewReaderSize(io.NewSectionReader(f, at/page*pagemapEntry, size/page*pagemapEntry), 1<<20)
	var own []memimage.Range
	var entry [pagemapEntry]byte
	for off := int64(0); off < size; off += page {
		if _, err := io.ReadFull(r, entry[:]); err != nil {
			return nil, fmt.Errorf("look for pages that the guest has written: %w", err)
		}
		e := binary.NativeEndian.Uint64(entry[:])
		if e&(pagemapPresent|pagemapSwapped) == 0 || e&pagemapFile != 0 {
			continue
		}
		if n := len(own); n > 0 && own[n-1].End == off {
			own[n-1].End += page
		} else {
			own = append(own, memimage.Range{Start: off, End: off + page})
		}
	}
	return own, nil
}
