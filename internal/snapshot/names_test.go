package snapshot

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestNames(t *testing.T) {
	s := New(t.TempDir())
	a, b := take(t, s, "a"), take(t, s, "b")
	defer a.Release()
	defer b.Release()
	if _, err := s.Begin("a", 0); !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), a.Manifest.ID) {
		t.Errorf("begin with a name that is taken: %v", err)
	}
	if _, err := s.Begin("../a", 0); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("begin with a path: %v", err)
	}
	if err := s.Rename(t.Context(), "a", "b"); !errors.Is(err, ErrNameTaken) {
		t.Errorf("rename to a name that is taken: %v", err)
	}
	if err := s.Rename(t.Context(), "nobody", "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("rename nobody: %v", err)
	}
	if err := s.Rename(t.Context(), "a", "c"); err != nil {
		t.Error(err)
	}
	if e, err := s.Find("c"); err != nil || e.Manifest.ID != a.Manifest.ID {
		t.Errorf("find the new name: %v", err)
	}
	// Two at once: one gets the name, and the other leaves nothing.
	one, err := s.Begin("same", 0)
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.Begin("same", 0)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, one)
	fill(t, two)
	first, err := one.Commit(t.Context(), testManifest(), testFiles)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	if _, err := two.Commit(t.Context(), testManifest(), testFiles); !errors.Is(err, ErrNameTaken) {
		t.Errorf("commit with a name that was taken meanwhile: %v", err)
	}
	if _, err := os.Stat(two.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the second left %s: %v", two.dir, err)
	}
}

// Of many snapshots of one VM that are taken at once, under one name, one is
// kept, and whoever takes another is told so; those without a name all are.
func TestManyOfOneVM(t *testing.T) {
	const many = 8
	for name, want := range map[string]int{"same": 1, "": many} {
		s := New(t.TempDir())
		var all sync.WaitGroup
		var kept atomic.Int32
		for range many {
			all.Go(func() {
				d, err := s.Begin(name, 0)
				var snap *Snapshot
				if err == nil {
					fill(t, d)
					snap, err = d.Commit(t.Context(), testManifest(), testFiles)
				}
				switch {
				case err == nil:
					kept.Add(1)
					snap.HandOver()
				case !errors.Is(err, ErrNameTaken):
					t.Error(err)
				}
			})
		}
		all.Wait()
		list, err := s.List()
		if err != nil || len(list) != want || int(kept.Load()) != want {
			t.Errorf("%q: %d kept, %d listed, %v", name, kept.Load(), len(list), err)
		}
		if left, err := os.ReadDir(s.dir); err != nil || len(left) != want+1 { // and the lock
			t.Errorf("%q: left %v, %v", name, left, err)
		}
	}
}

// A snapshot without a name goes with its last user.
func TestNameless(t *testing.T) {
	s := New(t.TempDir())
	snap := take(t, s, "")
	other, err := s.Hold(snap.Manifest.ID)
	if err != nil {
		t.Fatal(err)
	}
	snap.Release()
	if _, err := s.Find(snap.Manifest.ID); err != nil {
		t.Errorf("it went while it was used: %v", err)
	}
	other.Release()
	if _, err := s.Find(snap.Manifest.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("it stayed after its last user: %v", err)
	}
	// Nor does one stay whose users were killed.
	snap = takeAt(t, s, "", time.Now().Add(-2*sweepAge)) // it took long to become whole
	_ = snap.lock.Close()
	s.Sweep()
	if _, err := s.Find(snap.Manifest.ID); err != nil {
		t.Errorf("a young one was swept, which somebody may be about to use: %v", err)
	}
	inUse := func() bool {
		list, err := s.List()
		return err == nil && len(list) == 1 && list[0].InUse
	}
	if !inUse() {
		t.Error("a young one is listed as one that nobody uses, and whoever removes these takes it from who is about to")
	}
	old := time.Now().Add(-2 * sweepAge)
	if err := os.Chtimes(snap.Path(manifestName), old, old); err != nil {
		t.Fatal(err)
	}
	if inUse() {
		t.Error("an old one is listed as one that somebody uses")
	}
	s.Sweep()
	if _, err := s.Find(snap.Manifest.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("an old one was not swept: %v", err)
	}
}

// A VM's newest snapshot is the one whose guest stood still last, of those that
// were taken here.
func TestNewest(t *testing.T) {
	s := New(t.TempDir())
	began := time.Now().Add(-time.Hour)
	late := takeAt(t, s, "late", began.Add(2*time.Minute))
	defer late.Release()
	early := takeAt(t, s, "early", began.Add(time.Minute)) // it took longer
	defer early.Release()
	var archive bytes.Buffer
	if err := late.Export(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	imported, err := s.Import(t.Context(), &archive, "imported", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer imported.Release()
	if !imported.Manifest.Created.Equal(late.Manifest.Created) {
		t.Errorf("what was frozen at %s is of %s once it was imported", late.Manifest.Created, imported.Manifest.Created)
	}
	for _, c := range []struct {
		source string
		since  time.Time
		want   string
	}{
		{"0123456789ab", began, "late"},
		{"0123456789ab", began.Add(90 * time.Second), "late"},
		{"0123456789ab", began.Add(2 * time.Minute), ""},
		{"ffffffffffff", began, ""},
	} {
		if e, ok := s.Newest(c.source, c.since); e.Manifest.Name != c.want || ok != (c.want != "") {
			t.Errorf("of %s since %s: %q, %t", c.source, c.since.Sub(began), e.Manifest.Name, ok)
		}
	}
}

// A snapshot that is given a name while it is used keeps it, and is kept.
func TestRenamedWhileUsed(t *testing.T) {
	s := New(t.TempDir())
	for name, use := range map[string]func(*Snapshot){
		"let go": func(snap *Snapshot) { snap.Release() },
		"verified": func(snap *Snapshot) {
			now := time.Now()
			if err := os.Chtimes(snap.Memory(), now, now); err != nil {
				t.Fatal(err)
			}
			if err := snap.Verify(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			snap.Release()
		},
	} {
		snap := take(t, s, "")
		id := snap.Manifest.ID
		if err := s.Rename(t.Context(), id, "kept"); err != nil {
			t.Fatal(err)
		}
		use(snap)
		if e, err := s.Find("kept"); err != nil || e.Manifest.ID != id {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Remove(id); err != nil {
			t.Fatal(err)
		}
	}
}
