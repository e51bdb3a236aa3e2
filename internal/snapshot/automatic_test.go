package snapshot

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/proc"
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
	m.Key = key
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
