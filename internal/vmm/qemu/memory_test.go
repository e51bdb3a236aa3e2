package qemu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
)

// In this process in place of QEMU: pages of a private mapping that were written
// are found, whatever is in them, and those that were only read are not.
func TestSavePrivate(t *testing.T) {
	page := os.Getpagesize()
	const pages = 256 // 1 MiB, or more
	path := filepath.Join(t.TempDir(), "memory")
	parent := make([]byte, 16<<20)
	for i := range pages * page / 2 {
		parent[i] = byte(i / page)
	}
	if err := os.WriteFile(path, parent, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := openMemory(path, len(parent)>>20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	b, err := unix.Mmap(int(m.file.Fd()), 0, int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	var sum byte
	for i := 0; i < len(b); i += page { // reads all
		sum += b[i]
	}
	clear(b[7*page : 8*page])        // zeros instead of data
	b[200*page+17], b[9*page] = 1, 2 // in a hole, and in data
	copy(b[10*page:], parent[10*page:11*page])

	dst, err := memimage.Create(filepath.Join(t.TempDir(), "saved"), m.size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dst.Close() }()
	saved, err := m.save(t.Context(), os.Getpid(), dst)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i, j int) memimage.Range { return memimage.Range{Start: int64(i * page), End: int64(j * page)} }
	if want := []memimage.Range{at(7, 8), at(9, 11), at(200, 201)}; !slices.Equal(saved, want) {
		t.Errorf("saved %v, not %v (%d)", saved, want, sum)
	}
	if err := m.complete(t.Context(), dst, saved); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst.Name())
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("what was saved is not what is in memory: %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, parent) {
		t.Errorf("the parent's memory has changed: %v", err)
	}
}

func TestSaveShared(t *testing.T) {
	m, err := newMemory(4)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if _, err := m.file.WriteAt([]byte("here"), 2<<20); err != nil {
		t.Fatal(err)
	}
	dst, err := memimage.Create(filepath.Join(t.TempDir(), "saved"), m.size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dst.Close() }()
	saved, err := m.save(t.Context(), os.Getpid(), dst)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.complete(t.Context(), dst, saved); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst.Name())
	if want := append(append(make([]byte, 2<<20), "here"...), make([]byte, 2<<20-4)...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was saved is not what is in memory: %v", err)
	}
}

func TestFindMapping(t *testing.T) {
	const file = "fd:01 42"
	for _, c := range []struct {
		name, maps string
		want       int64 // 0: an error
	}{
		{"one", "1000-5000 rw-p 00000000 fd:01 42 /memory\n", 0x1000},
		{"in parts", "1000-2000 rw-p 00000000 fd:01 42 /memory\n2000-5000 r--p 00001000 fd:01 42 /memory (deleted)\n", 0x1000},
		{"among others", "0-1000 r-xp 0 fd:01 41 /x\n1000-5000 rw-p 0 fd:01 42 /memory\n6000-7000 rw-p 0 00:00 0 [heap]\n", 0x1000},
		{"not there", "1000-5000 rw-p 00000000 fd:01 43 /memory\n", 0},
		{"on another device", "1000-5000 rw-p 00000000 fd:02 42 /memory\n", 0},
		{"shared", "1000-5000 rw-s 00000000 fd:01 42 /memory\n", 0},
		{"twice", "1000-5000 rw-p 00000000 fd:01 42 /memory\n7000-b000 rw-p 00000000 fd:01 42 /memory\n", 0},
		{"a part", "1000-2000 rw-p 00000000 fd:01 42 /memory\n", 0},
		{"from the middle", "1000-5000 rw-p 00001000 fd:01 42 /memory\n", 0},
		{"with a gap", "1000-2000 rw-p 00000000 fd:01 42 /memory\n3000-6000 rw-p 00001000 fd:01 42 /memory\n", 0},
		{"no maps", "what\n", 0},
	} {
		areas, err := parseMaps(strings.NewReader(c.maps))
		var at int64
		if err == nil {
			at, err = findMapping(areas, file, 0x4000)
		}
		if at != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%s: %#x, %v", c.name, at, err)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add("1000-5000 rw-p 00000000 fd:01 42 /memory\n")
	f.Fuzz(func(t *testing.T, maps string) {
		areas, err := parseMaps(strings.NewReader(maps))
		if err != nil {
			return
		}
		if at, err := findMapping(areas, "fd:01 42", 0x4000); err == nil && uint64(at)+0x4000 < uint64(at) {
			t.Errorf("a mapping at %#x", at)
		}
	})
}

// The address of this process's mapping is the one that the kernel lists.
func TestMappingOfThisProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := openMemory(path, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if at, err := m.mapping(os.Getpid()); err == nil {
		t.Errorf("a file that is not mapped is found at %#x", at)
	}
	b, err := unix.Mmap(int(m.file.Fd()), 0, int(m.size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	at, err := m.mapping(os.Getpid())
	if want := int64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))); err != nil || at != want {
		t.Errorf("%#x, not %#x: %v", at, want, err)
	}
}

// A process with the filter makes holes in files, but none of one page.
func TestKeepHoles(t *testing.T) {
	if _, err := exec.LookPath("fallocate"); err != nil {
		t.Skip("there is no fallocate(1)")
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte("data"), 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"-p", "-o", "0", "-l", fmt.Sprint(page)}, 1},
		{[]string{"-p", "-o", "0", "-l", fmt.Sprint(2 * page)}, 0},
		{[]string{"-o", "0", "-l", fmt.Sprint(page)}, 0},
	} {
		p, err := launch.Direct{}.Launch(t.Context(), vmm.Command{
			Path: "/usr/bin/fallocate", Args: append(c.args, path), Seccomp: keepHoles(), Stderr: os.Stderr,
		})
		if err != nil {
			t.Fatal(err)
		}
		if e := p.Wait(); e.Code != c.code {
			t.Errorf("fallocate %v: %+v", c.args, e)
		}
	}
	// This process has no filter.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(page)); err != nil {
		t.Error(err)
	}
}
