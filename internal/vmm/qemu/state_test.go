package qemu

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/vmm"
)

func testShape() shape {
	return shapeOf(&vmm.Config{
		CPUs: 2, MemoryMiB: 512, Net: &vmm.Net{MTU: 1500},
		Disks: []vmm.Disk{{ID: "root", ReadOnly: true}, {ID: "scratch"}},
	}, host{})
}

// sealed is a file with a state and its trailer.
func sealed(t testing.TB, state string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := sealState(f, version{10, 0, 3}, testShape()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestState(t *testing.T) {
	b := sealed(t, "QEVM and so on")
	if !strings.HasPrefix(string(b), "QEVM and so on{") {
		t.Errorf("QEMU's part does not come first: %.40q", b)
	}
	info, err := readState(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	info.SHA256 = nil
	if d := cmp.Diff(stateInfo{QEMU: version{10, 0, 3}, Size: 14, Shape: testShape()}, info); d != "" {
		t.Error(d)
	}
	// Not a byte may be missing, or another.
	for i := range b {
		if _, err := readState(bytes.NewReader(b[:i]), int64(i)); !errors.Is(err, errState) {
			t.Errorf("%d bytes of it: %v", i, err)
		}
	}
	for i := range 14 {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, err := readState(bytes.NewReader(c), int64(len(c))); !errors.Is(err, errState) {
			t.Errorf("byte %d is another: %v", i, err)
		}
	}
}

func TestSealNothing(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := sealState(f, version{}, shape{}); !errors.Is(err, errState) {
		t.Error(err)
	}
}

func FuzzReadState(f *testing.F) {
	f.Add(sealed(f, "QEVM"))
	f.Add([]byte("{}\x00\x00\x00\x02" + stateMagic))
	f.Add([]byte("\xff\xff\xff\xff" + stateMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := readState(bytes.NewReader(b), int64(len(b)))
		if err == nil && (info.Size < 0 || info.Size > int64(len(b))) {
			t.Errorf("a state of %d bytes in a file of %d", info.Size, len(b))
		}
	})
}

func TestShapeDiffers(t *testing.T) {
	if d := testShape().differs(testShape()); d != "" {
		t.Errorf("a shape differs from itself: %s", d)
	}
	for what, change := range map[string]func(*shape){
		"use of KVM":        func(s *shape) { s.KVM = true },
		"number of CPUs":    func(s *shape) { s.CPUs++ },
		"memory in MiB":     func(s *shape) { s.MemoryMiB++ },
		"disks":             func(s *shape) { s.Disks = s.Disks[:1] },
		"network interface": func(s *shape) { s.Net = false },
		"MTU":               func(s *shape) { s.MTU = 0 },
		"architecture":      func(s *shape) { s.Arch = "vax" },
	} {
		other := testShape()
		change(&other)
		if d := testShape().differs(other); !strings.HasPrefix(d, what+": ") {
			t.Errorf("%s: %q", what, d)
		}
	}
}

// The time of a guest that is emulated goes as fast as where it was booted.
func TestCheckTime(t *testing.T) {
	for _, c := range []struct {
		name string
		was  int
		here []int // as it is measured; the last one again and again
		fits bool
	}{
		{"the same", 2_000_000, []int{2_000_000}, true},
		{"as exactly as it can be measured", 2_000_000, []int{2_001_900}, true},
		{"measured wrongly on a busy host", 2_000_000, []int{2_100_000, 1_999_500}, true},
		{"faster", 2_000_000, []int{2_003_000}, false},
		{"slower", 2_000_000, []int{1_900_000}, false},
		{"unfit here", 2_000_000, []int{0}, false},
		{"not used", 0, []int{2_500_000}, true},
	} {
		err := shape{TSCKHz: c.was}.checkTime(func() int {
			khz := c.here[0]
			if len(c.here) > 1 {
				c.here = c.here[1:]
			}
			return khz
		})
		if (err == nil) != c.fits || (err != nil && (!errors.Is(err, vmm.ErrIncompatible) || !strings.Contains(err.Error(), "2000000 kHz"))) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		v               version
		loads, readOnly bool // loads: what 7.2.1 has saved
	}{
		{version{7, 2, 22}, true, false},
		{version{7, 3, 0}, false, false},
		{version{8, 2, 0}, false, true},
		{version{10, 0, 0}, false, true},
		{version{8, 1, 5}, false, false},
	} {
		if c.v.loads(version{7, 2, 1}) != c.loads || c.v.readOnlyFiles() != c.readOnly {
			t.Errorf("%s: %t, %t", c.v, c.v.loads(version{7, 2, 1}), c.v.readOnlyFiles())
		}
	}
}
