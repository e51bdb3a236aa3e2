package snapshot

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

// takeAutomatic makes one of a key, which was last used so long ago.
func takeAutomatic(t *testing.T, s *Store, key, boot string, ago time.Duration) string {
	t.Helper()
	d, err := s.Begin("", 0)
	if err != nil {
		t.Fatal(err)
	}
	d.Boot = boot
	fill(t, d)
	m := testManifest()
	m.Key, m.Guest = key, GuestUp
	snap, err := d.Commit(t.Context(), m, testFiles)
	if err != nil {
		t.Fatal(err)
	}
	snap.Release()
	used := time.Now().Add(-ago)
	if err := os.Chtimes(snap.Path(lockName), used, used); err != nil {
		t.Fatal(err)
	}
	return snap.Manifest.ID
}

func TestAutomaticSnapshots(t *testing.T) {
	s := New(t.TempDir())
	if _, ok := s.HoldKey("a"); ok {
		t.Error("found before there is one")
	}
	asked := take(t, s, "asked")
	defer asked.Release()
	var ids []string
	for i := range MaxAutomatic + 2 {
		ids = append(ids, takeAutomatic(t, s, string(rune('a'+i)), "", time.Duration(i+1)*time.Hour))
	}
	newer := takeAutomatic(t, s, "a", "", 0)
	old, ok := s.HoldKey("j") // the one that was used longest ago
	if !ok {
		t.Fatal("a key is not found")
	}
	if snap, ok := s.HoldKey("a"); !ok || snap.Manifest.ID != newer {
		t.Error("the newest of a key is not found")
	} else {
		snap.Release()
	}
	s.TrimAutomatic()
	for i, id := range ids {
		_, err := s.Find(id)
		// a has a newer one; j is used, and so counts as the last one used.
		if gone := i == 0 || (i >= MaxAutomatic-1 && id != old.Manifest.ID); gone != errors.Is(err, ErrNotFound) {
			t.Errorf("%c: %v", 'a'+i, err)
		}
	}
	old.Release()
	if _, err := s.Find("asked"); err != nil {
		t.Error(err)
	}
}

// One that fcvm has taken by itself is found by its key alone: under a name, or on
// another host, nothing could be started from it.
func TestAutomaticSnapshotsStayWhatTheyAre(t *testing.T) {
	s := New(t.TempDir())
	id := takeAutomatic(t, s, "a", "", 0)
	if err := s.Rename(t.Context(), id, "mine"); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("named: %v", err)
	}
	snap, ok := s.HoldKey("a")
	if !ok {
		t.Fatal("it is not found any more")
	}
	defer snap.Release()
	var archive bytes.Buffer
	if err := snap.Export(t.Context(), &archive); !errors.Is(err, vm.ErrInvalid) || archive.Len() > 0 {
		t.Errorf("exported, %d bytes: %v", archive.Len(), err)
	}
}

// What may not have reached the disk before the host was restarted is read.
func TestUnsynced(t *testing.T) {
	s := New(t.TempDir())
	for boot, noticed := range map[string]bool{"": false, proc.BootID(): false, "another": true} {
		id := takeAutomatic(t, s, boot+"key", boot, 0)
		snap, err := s.Hold(id)
		if err != nil {
			t.Fatal(err)
		}
		// A file system may bring back the size and time of a file, and not its data.
		if err := os.Chmod(snap.Memory(), 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(snap.Memory())
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(snap.Memory(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(make([]byte, 4096), 0)
		if err = errors.Join(err, f.Close(), os.Chtimes(snap.Memory(), st.ModTime(), st.ModTime())); err != nil {
			t.Fatal(err)
		}
		if err := snap.Verify(t.Context(), false); errors.Is(err, ErrCorrupt) != noticed {
			t.Errorf("written during boot %q: %v", boot, err)
		}
		snap.Release()
	}
}

// passing is a snapshot that goes with its last user, of a boot of the host's.
func passing(t *testing.T, s *Store, boot string) *Snapshot {
	t.Helper()
	d, err := s.Begin("", 0)
	if err != nil {
		t.Fatal(err)
	}
	d.Boot = boot
	fill(t, d)
	snap, err := d.Commit(t.Context(), testManifest(), testFiles)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// A snapshot that goes with its last user is not read before it is used. That it was
// touched, or may not have reached the disk, is noticed all the same.
func TestAPassingSnapshotIsNotRead(t *testing.T) {
	later := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		boot   string
		change func(path string) error
		want   error
	}{
		"as it was":    {proc.BootID(), func(string) error { return nil }, nil},
		"touched":      {proc.BootID(), func(p string) error { return os.Chtimes(p, later, later) }, ErrCorrupt},
		"shorter":      {proc.BootID(), func(p string) error { return os.Truncate(p, 1) }, ErrCorrupt},
		"another boot": {"another", func(string) error { return nil }, ErrCorrupt},
	} {
		s := New(t.TempDir())
		snap := passing(t, s, c.boot)
		for _, f := range snap.Manifest.Files {
			if f.Digest != "" {
				t.Errorf("%s: its %s was read", name, f.Name)
			}
		}
		if err := errors.Join(os.Chmod(snap.Memory(), 0o600), c.change(snap.Memory())); err != nil {
			t.Fatal(err)
		}
		for what, check := range map[string]func() error{
			"start":  func() error { return snap.Check(t.Context()) },
			"verify": func() error { return snap.Verify(t.Context(), true) },
			"name":   func() error { return s.Rename(t.Context(), snap.Manifest.ID, "kept") },
		} {
			if err := check(); !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		snap.Release()
	}
}

// One that is given a name, verified or exported is read, and damage that comes later
// is found, whatever its time says.
func TestAPassingSnapshotThatIsKept(t *testing.T) {
	for name, keep := range map[string]func(*Store, *Snapshot) error{
		"named":    func(s *Store, snap *Snapshot) error { return s.Rename(t.Context(), snap.Manifest.ID, "kept") },
		"verified": func(_ *Store, snap *Snapshot) error { return snap.Verify(t.Context(), false) },
		"exported": func(_ *Store, snap *Snapshot) error {
			var archive bytes.Buffer
			if err := snap.Export(t.Context(), &archive); err != nil {
				return err
			}
			there, err := New(t.TempDir()).Import(t.Context(), &archive, "", nil)
			if err == nil {
				err = there.Verify(t.Context(), true)
			}
			return err
		},
	} {
		s := New(t.TempDir())
		snap := passing(t, s, proc.BootID())
		if err := keep(s, snap); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e, err := s.Find(snap.Manifest.ID)
		if err != nil {
			t.Fatal(err)
		}
		if kept := e.Manifest.Unsynced == ""; kept != (name == "named") {
			t.Errorf("%s: it outlives the boot: %t", name, kept)
		}
		held, err := s.Hold(snap.Manifest.ID)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(held.Memory())
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(held.Memory(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{1}, memorySize-1)
		if err = errors.Join(err, f.Close(), os.Chtimes(held.Memory(), st.ModTime(), st.ModTime())); err != nil {
			t.Fatal(err)
		}
		if err := held.Verify(t.Context(), true); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, and damaged: %v", name, err)
		}
		held.Release()
		snap.Release()
	}
}
