package snapshot

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

const memorySize = 8 << 20

func testManifest() Manifest {
	return Manifest{
		Source: Source{ID: "0123456789ab", Name: "web"},
		Needs:  Needs{Arch: "amd64", Driver: "qemu", VMMVersion: "7.2.0", CPUs: 1, MemoryMiB: 512, ImageDigest: "sha256:x"},
		Spec: vm.Spec{
			Image: "busybox", Driver: "qemu", CPUs: 1, MemoryMiB: 512, Init: vm.InitAgent, Logs: vm.LogsFile,
		},
		Guest: GuestRunning,
		Disks: []Disk{{ID: "root", Name: "rootfs.ext4", ReadOnly: true}, {ID: "scratch", Name: "scratch.ext4"}},
	}
}

var testFiles = []string{MemoryName, StateName, "scratch.ext4"}

// fill makes a draft's files: memory and disk with data here and there.
func fill(t *testing.T, d *Draft) {
	t.Helper()
	for _, name := range testFiles {
		f, err := os.Create(d.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		size := int64(memorySize)
		if name == StateName {
			size = 1000
		}
		err = f.Truncate(size)
		for off := int64(0); off < size; off += memorySize / 4 {
			_, werr := f.WriteAt([]byte(name+" data"), off)
			err = errors.Join(err, werr)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func take(t *testing.T, s *Store, name string) *Snapshot {
	t.Helper()
	return takeAt(t, s, name, time.Time{})
}

// takeAt takes a snapshot of a guest that stood still at some time; zero: now.
func takeAt(t *testing.T, s *Store, name string, frozen time.Time) *Snapshot {
	t.Helper()
	d, err := s.Begin(name, memorySize)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, d)
	m := testManifest()
	m.Created = frozen
	snap, err := d.Commit(t.Context(), m, testFiles)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func TestASnapshotFromDraftToRemoval(t *testing.T) {
	s := New(filepath.Join(t.TempDir(), "snapshots"))
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Fatalf("before there is anything: %v, %v", list, err)
	}
	d, err := s.Begin("warm", memorySize)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, d)
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Fatalf("a draft is listed: %v, %v", list, err)
	}
	s.Sweep()
	snap, err := d.Commit(t.Context(), testManifest(), testFiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := snap.Verify(t.Context(), true); err != nil {
		t.Error(err)
	}
	for _, ref := range []string{"warm", snap.Manifest.ID, snap.Manifest.ID[:5]} {
		if e, err := s.Find(ref); err != nil || e.Manifest.ID != snap.Manifest.ID || !e.InUse {
			t.Errorf("find %s: %+v, %v", ref, e, err)
		}
	}
	if err := s.Remove(snap.Manifest.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("remove one in use: %v", err)
	}
	other, err := s.Hold(snap.Manifest.ID)
	if err != nil {
		t.Fatal(err)
	}
	snap.Release()
	if err := s.Remove(snap.Manifest.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("remove one that somebody else uses: %v", err)
	}
	other.Release()
	for range 2 {
		if err := s.Remove(snap.Manifest.ID); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := s.Find("warm"); !errors.Is(err, ErrNotFound) {
		t.Errorf("find what was removed: %v", err)
	}
	if _, err := s.Hold(snap.Manifest.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("hold what was removed: %v", err)
	}
}

func TestSweepLeavesNothingOfTheDead(t *testing.T) {
	dir := t.TempDir()
	s := New(dir)
	d, err := s.Begin("half", 0)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, d)
	s.Sweep()
	if _, err := os.Stat(d.dir); err != nil {
		t.Fatalf("the draft of a process that lives was swept: %v", err)
	}
	_ = d.lock.Close() // as when its process dies
	if err := os.Mkdir(filepath.Join(dir, trashPrefix+"0123456789ab"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Sweep()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != lockName {
			t.Errorf("left: %s", e.Name())
		}
	}
}

// A snapshot that could not be committed to the end is none, and leaves nothing.
func TestACommitIsWholeOrNone(t *testing.T) {
	for name, spoil := range map[string]func(*Draft) error{
		"it cannot be locked": func(d *Draft) error { return d.lock.Close() },
		"it cannot be synced": func(d *Draft) error { return os.Chmod(d.store.dir, 0o300) },
	} {
		t.Run(name, func(t *testing.T) {
			s := New(t.TempDir())
			d, err := s.Begin("", 0)
			if err != nil {
				t.Fatal(err)
			}
			fill(t, d)
			if err := spoil(d); err != nil {
				t.Fatal(err)
			}
			_, listErr := os.ReadDir(s.dir)
			snap, err := d.Commit(t.Context(), testManifest(), testFiles)
			if cerr := os.Chmod(s.dir, 0o700); cerr != nil {
				t.Fatal(cerr)
			}
			if strings.Contains(name, "sync") && listErr == nil {
				snap.Release()
				t.Skip("this user may read every directory")
			}
			if err == nil || snap != nil {
				t.Errorf("committed: %v, %v", snap, err)
			}
			if l, err := s.List(); err != nil || len(l) != 0 {
				t.Errorf("listed: %v, %v", l, err)
			}
			s.Sweep() // a directory that cannot be read keeps a draft until then
			left, err := os.ReadDir(s.dir)
			if err != nil || len(left) != 1 || left[0].Name() != lockName {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// A file that was changed is noticed, whatever its length and time.
func TestVerify(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"a byte": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{1}, memorySize-1)
			return errors.Join(err, f.Close())
		},
		"truncated": func(p string) error { return os.Truncate(p, 4096) },
		"missing":   os.Remove,
		"replaced": func(p string) error {
			return errors.Join(os.Remove(p), os.WriteFile(p, make([]byte, memorySize), 0o400))
		},
		"a link": func(p string) error {
			return errors.Join(os.Rename(p, p+".old"), os.Symlink(p+".old", p))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(t.TempDir())
			snap := take(t, s, "x")
			defer snap.Release()
			if err := os.Chmod(snap.Memory(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := damage(snap.Memory()); err != nil {
				t.Fatal(err)
			}
			err := snap.Verify(t.Context(), false)
			if err == nil || (name != "a link" && (!errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), MemoryName))) {
				t.Errorf("got %v", err)
			}
		})
	}
	// What was only copied is read once, and then known again.
	s := New(t.TempDir())
	snap := take(t, s, "x")
	defer snap.Release()
	now := time.Now()
	if err := os.Chtimes(snap.Memory(), now, now); err != nil {
		t.Fatal(err)
	}
	if err := snap.Verify(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	e, err := s.Find("x")
	if err != nil || !e.Manifest.Files[0].Stamp.MTime.Equal(now.Truncate(time.Nanosecond)) {
		t.Errorf("the new stamp was not kept: %+v, %v", e.Manifest.Files[0].Stamp, err)
	}
}

// Holes and zeros are the same to a digest.
func TestDigest(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int64, at map[int64]string, dense bool) string {
		t.Helper()
		b := make([]byte, size)
		for off, text := range at {
			copy(b[off:], text)
		}
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		err = f.Truncate(size)
		if dense {
			_, err = f.WriteAt(b, 0)
		} else {
			for off, text := range at {
				_, err = f.WriteAt([]byte(text), off)
			}
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		d, err := Digest(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	data := map[int64]string{0: "a", 300000: "b", 1<<20 + 10: "c"}
	sparse := write("sparse", 1<<20+11, data, false)
	if dense := write("dense", 1<<20+11, data, true); dense != sparse {
		t.Errorf("with zeros %s, with holes %s", dense, sparse)
	}
	for name, other := range map[string]string{
		"longer":    write("longer", 1<<20+12, data, false),
		"moved":     write("moved", 1<<20+11, map[int64]string{1: "a", 300000: "b", 1<<20 + 10: "c"}, false),
		"one chunk": write("chunk", 1<<20+11, map[int64]string{0: "a", 300000 + digestChunk: "b", 1<<20 + 10: "c"}, false),
		"empty":     write("empty", 1<<20+11, nil, false),
		"nothing":   write("nothing", 0, nil, false),
	} {
		if other == sparse {
			t.Errorf("%s: the same digest", name)
		}
	}
}

func TestNoSpace(t *testing.T) {
	s := New(t.TempDir())
	if _, err := s.Begin("x", 1<<60); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	if list, err := os.ReadDir(s.dir); err != nil || len(list) > 1 {
		t.Errorf("left %v, %v", list, err)
	}
}

func TestBrokenOnesAreListed(t *testing.T) {
	s := New(t.TempDir())
	good := take(t, s, "good")
	defer good.Release()
	for id, text := range map[string]string{
		"00000000000a": "", "00000000000b": "{", "00000000000c": `{"schema":99}`,
		"00000000000d": `{"schema":1,"id":"ffffffffffff"}`,
	} {
		dir := s.path(id)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, manifestName), []byte(text), 0o600), os.WriteFile(filepath.Join(dir, lockName), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.List()
	if err != nil || len(list) != 5 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	for _, e := range list {
		if (e.Err == nil) != (e.Manifest.ID == good.Manifest.ID) {
			t.Errorf("%s: %v", e.Manifest.ID, e.Err)
		}
		if e.Manifest.ID == "00000000000c" && !errors.Is(e.Err, ErrNewerSchema) {
			t.Errorf("a newer one: %v", e.Err)
		}
	}
	if err := s.Remove("00000000000b"); err != nil {
		t.Errorf("remove a broken one: %v", err)
	}
}

func TestCheckNamesWhatDiffers(t *testing.T) {
	want := Needs{Arch: "amd64", Driver: "firecracker", VMMVersion: "1.13.0", Accelerated: true, CPU: CPU{Model: "EPYC", Features: "abc"}}
	if err := want.Check("x", want); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Needs){
		"architecture": func(n *Needs) { n.Arch = "arm64" },
		"version":      func(n *Needs) { n.VMMVersion = "1.14.0" },
		"agent":        func(n *Needs) { n.Agent++ },
		"VMM":          func(n *Needs) { n.Driver = "qemu" },
		"acceleration": func(n *Needs) { n.Accelerated = false },
		"CPU":          func(n *Needs) { n.CPU.Features = "other" },
	} {
		has := want
		change(&has)
		if err := want.Check("x", has); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Many processes take, use and remove at once; none sees half a snapshot.
func TestConcurrency(t *testing.T) {
	s := New(t.TempDir())
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				d, err := s.Begin("", 0)
				if err != nil {
					t.Error(err)
					return
				}
				fill(t, d)
				snap, err := d.Commit(context.Background(), testManifest(), testFiles)
				if err != nil {
					t.Error(err)
					return
				}
				s.Sweep()
				again, err := s.Hold(snap.Manifest.ID)
				if err != nil {
					t.Error(err)
					return
				}
				snap.Release()
				if err := again.Verify(context.Background(), true); err != nil {
					t.Error(err)
				}
				again.Release()
			}
		})
	}
	all.Wait()
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("left %d, %v", len(list), err)
	}
}

// A process that is killed while it makes a snapshot leaves none.
func TestKilledInTheMiddle(t *testing.T) {
	if dir := os.Getenv("FCVM_TEST_SNAPSHOT_DIR"); dir != "" {
		for i := 0; ; i++ {
			take(t, New(dir), "").Release()
		}
	}
	dir := t.TempDir()
	s := New(dir)
	for i := range 10 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledInTheMiddle$")
		cmd.Env = append(os.Environ(), "FCVM_TEST_SNAPSHOT_DIR="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(30+i*13) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			snap, err := s.Hold(e.Manifest.ID)
			if err != nil {
				t.Errorf("listed, and not whole: %v", err)
				continue
			}
			if err := snap.Verify(t.Context(), true); err != nil {
				t.Errorf("listed, and not whole: %v", err)
			}
			snap.Release()
		}
		s.Sweep()
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != lockName {
			t.Errorf("left: %s", e.Name())
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schema":1,"id":"0123456789ab","guest":"up"}`))
	f.Add([]byte(`{"schema":99}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if filepath.Base(file.Name) != file.Name || file.Name == ".." {
				t.Fatalf("a file %q", file.Name)
			}
		}
	})
}
