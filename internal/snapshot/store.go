package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/fcvm/fcvm/internal/atomicfile"
	"github.com/fcvm/fcvm/internal/ofdlock"
	"github.com/fcvm/fcvm/internal/vm"
)

const (
	manifestName = "manifest.json"
	lockName     = "lock"
	draftPrefix  = ".draft-"
	trashPrefix  = ".trash-"
	maxManifest  = 4 << 20 // bytes; what is larger is not one of ours

	// sweepAge is how old a snapshot without a name has to be before it is
	// taken for one that nobody will use any more.
	sweepAge = time.Minute
)

// Store is the snapshots of one data directory. It is safe for concurrent use,
// by any number of processes.
//
//	DIR/lock             flock: names are given or taken back
//	DIR/ID/manifest.json what the snapshot is
//	DIR/ID/lock          a lock (see lockDir): shared by those who use it
//	DIR/ID/…             its files
//	DIR/.draft-ID/       one that is being made, by whoever has its lock
type Store struct {
	dir string
}

// Entry is one snapshot as a listing shows it. With Err set only Manifest.ID
// is sure.
type Entry struct {
	Manifest Manifest
	Dir      string
	InUse    bool  // or about to be
	Err      error // why it cannot be read
}

// New returns the store of a directory, which need not exist yet.
func New(dir string) *Store { return &Store{dir: dir} }

func (s *Store) path(id string) string  { return filepath.Join(s.dir, id) }
func (s *Store) draft(id string) string { return filepath.Join(s.dir, draftPrefix+id) }

// withLock runs f while no other process commits, renames or removes.
func (s *Store) withLock(f func() error) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("open the snapshots: %w", err)
	}
	l := flock.New(filepath.Join(s.dir, lockName), flock.SetPermissions(0o600))
	if err := l.Lock(); err != nil {
		return fmt.Errorf("lock the snapshots: %w", err)
	}
	defer func() { _ = l.Close() }()
	return f()
}

// List returns every snapshot, oldest first. One that cannot be read is an
// entry with Err set; it never fails the listing.
func (s *Store) List() ([]Entry, error) {
	dirs, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var entries []Entry
	for _, d := range dirs {
		if !d.IsDir() || !vm.ValidID(d.Name()) {
			continue
		}
		e := s.entry(d.Name())
		if errors.Is(e.Err, fs.ErrNotExist) {
			if _, err := os.Stat(e.Dir); errors.Is(err, fs.ErrNotExist) {
				continue // it has just been removed
			}
		}
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.Manifest.Created.Compare(b.Manifest.Created) })
	return entries, nil
}

func (s *Store) entry(id string) Entry {
	e := Entry{Dir: s.path(id)}
	e.Manifest, e.Err = readManifest(filepath.Join(e.Dir, manifestName), id)
	e.Manifest.ID = id
	e.InUse = s.inUse(id) || s.awaited(&e)
	return e
}

// awaited reports whether somebody may be about to hold a snapshot without a name,
// who has just been told of it (HandOver): to others it is in use already.
func (s *Store) awaited(e *Entry) bool {
	return e.Err == nil && e.Manifest.nameless() && s.age(e.Manifest.ID) < sweepAge
}

// readManifest reads the manifest of the snapshot id.
func readManifest(path, id string) (Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return Manifest{}, err
	}
	m, err := ParseManifest(b)
	if err == nil && m.ID != id {
		err = fmt.Errorf("%w: its manifest is that of %q", ErrCorrupt, m.ID)
	}
	return m, err
}

// ParseManifest reads a manifest, which somebody else may have written, and
// refuses one that names anything outside of its directory.
func ParseManifest(b []byte) (Manifest, error) {
	var m Manifest
	if len(b) > maxManifest {
		return m, fmt.Errorf("%w: a manifest of more than %d bytes", ErrCorrupt, maxManifest)
	}
	err := json.Unmarshal(b, &m)
	if m.Schema > Schema {
		return Manifest{}, fmt.Errorf("%w: schema %d, this fcvm knows %d", ErrNewerSchema, m.Schema, Schema)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	return m, nil
}

// check refuses what no draft commits.
func (m *Manifest) check() error {
	switch {
	case m.Schema < 1:
		return fmt.Errorf("schema %d", m.Schema)
	case !vm.ValidID(m.ID):
		return fmt.Errorf("id %q", m.ID)
	case m.Name != "" && vm.CheckName(m.Name) != nil:
		return fmt.Errorf("name %q", m.Name)
	case m.Guest != GuestUp && m.Guest != GuestRunning:
		return fmt.Errorf("a guest that is %q", m.Guest)
	}
	if err := m.Spec.Validate(); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, f := range m.Files {
		switch {
		case !plainName(f.Name), known[f.Name]:
			return fmt.Errorf("a file %q", f.Name)
		case f.Size < 0 || f.Size > maxFile || f.Data < 0 || f.Data > f.Size:
			return fmt.Errorf("file %s of %d bytes, %d of them data", f.Name, f.Size, f.Data)
		}
		known[f.Name] = true
	}
	for _, d := range m.Disks {
		if !plainName(d.Name) || (d.Path != "" && (!filepath.IsAbs(d.Path) || !d.ReadOnly)) {
			return fmt.Errorf("a disk %q at %q", d.Name, d.Path)
		}
		if !d.ReadOnly && !known[d.Name] {
			return fmt.Errorf("disk %s is not among the files", d.Name)
		}
	}
	if !known[MemoryName] || !known[StateName] {
		return errors.New("memory or state is not among the files")
	}
	return nil
}

// maxFile bounds one file of a snapshot, bytes.
const maxFile = 16 << 40

// plainName reports whether a file can be called so: one word, that is not one
// of the store's own.
func plainName(name string) bool {
	if name == "" || len(name) > 64 || name == manifestName || name == lockName || name[0] == '.' {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// Find returns the snapshot with this id, else name, else unique prefix of an
// id. Automatic ones are found by their id only.
func (s *Store) Find(ref string) (Entry, error) {
	entries, err := s.List()
	if err != nil {
		return Entry{}, err
	}
	var byPrefix []Entry
	for _, e := range entries {
		switch {
		case e.Manifest.ID == ref:
			return e, nil
		case ref != "" && e.Manifest.Name == ref:
			return e, nil
		case ref != "" && strings.HasPrefix(e.Manifest.ID, ref):
			byPrefix = append(byPrefix, e)
		}
	}
	switch len(byPrefix) {
	case 0:
		return Entry{}, fmt.Errorf("%w: %q (list them with: fcvm snapshot ls)", ErrNotFound, ref)
	case 1:
		return byPrefix[0], nil
	}
	var fits []string
	for _, e := range byPrefix {
		fits = append(fits, fmt.Sprintf("%s (%s)", e.Manifest.ID, e.Manifest.Title()))
	}
	return Entry{}, fmt.Errorf("%w: %q fits %s", ErrAmbiguous, ref, strings.Join(fits, ", "))
}

// FindKey returns the newest automatic snapshot of a key that can be read.
func (s *Store) FindKey(key string) (Entry, bool) {
	entries, err := s.List()
	if err != nil {
		return Entry{}, false // it is as good as none
	}
	for _, e := range slices.Backward(entries) {
		if e.Err == nil && e.Manifest.Key == key {
			return e, true
		}
	}
	return Entry{}, false
}

// HoldKey takes the newest automatic snapshot of a key into use, if there is one
// that can be read.
func (s *Store) HoldKey(key string) (*Snapshot, bool) {
	e, ok := s.FindKey(key)
	if !ok {
		return nil, false
	}
	snap, err := s.Hold(e.Manifest.ID)
	if err != nil {
		return nil, false
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(e.Dir, lockName), now, now) // when it was last used
	return snap, true
}

// TrimAutomatic removes automatic snapshots that nobody uses, until there are
// MaxAutomatic, and all but the newest of each key.
func (s *Store) TrimAutomatic() {
	entries, err := s.List()
	if err != nil {
		return
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.Err != nil || !e.Manifest.Automatic() })
	used := func(e Entry) time.Time {
		st, err := os.Stat(filepath.Join(e.Dir, lockName))
		if err != nil {
			return time.Time{}
		}
		return st.ModTime()
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return used(b).Compare(used(a)) })
	keys := map[string]bool{}
	for _, e := range entries {
		if len(keys) == MaxAutomatic || keys[e.Manifest.Key] {
			_ = s.removeIf(e.Manifest.ID, (*Manifest).Automatic) // one that is used stays, for now
			continue
		}
		keys[e.Manifest.Key] = true
	}
}

// Newest returns the last snapshot that was taken of a VM since it was last
// started, here and by somebody who asked for it.
func (s *Store) Newest(source string, since time.Time) (Entry, bool) {
	entries, err := s.List()
	if err != nil {
		return Entry{}, false
	}
	for _, e := range slices.Backward(entries) {
		m := &e.Manifest
		if e.Err == nil && !m.Automatic() && !m.Imported && m.Source.ID == source && m.Created.After(since) {
			return e, true
		}
	}
	return Entry{}, false
}

// CheckFree refuses a name that cannot be given to a new snapshot.
func (s *Store) CheckFree(name string) error {
	if name == "" {
		return nil
	}
	if err := vm.CheckName(name); err != nil {
		return err
	}
	entries, err := s.List()
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(entries, func(e Entry) bool { return e.Manifest.Name == name }); i >= 0 {
		return fmt.Errorf("%w: %s is %s; choose another, or remove it with: fcvm snapshot rm %s", ErrNameTaken, name, entries[i].Manifest.ID, name)
	}
	return nil
}

// FreeName returns a name for a snapshot of a VM that nobody has named: the VM's,
// with a number that no other snapshot has.
func (s *Store) FreeName(source string) (string, error) {
	const most = 10000 // numbers that are tried
	source = source[:min(len(source), 57)]
	for i := 1; i <= most; i++ {
		name := fmt.Sprintf("%s-%d", source, i)
		err := s.CheckFree(name)
		if !errors.Is(err, ErrNameTaken) {
			return name, err
		}
	}
	return "", fmt.Errorf("%w: give the snapshot a name with --name", ErrNameTaken)
}

// Rename gives a snapshot another name. One that had none is kept from then on: it
// is read, and written to the disk, if it was not yet.
func (s *Store) Rename(ctx context.Context, ref, name string) error {
	e, err := s.Find(ref)
	if err = errors.Join(err, e.Err); err != nil {
		return err
	}
	if err := e.Manifest.CheckRuns(); err != nil {
		return err
	}
	if e.Manifest.Unsynced != "" {
		if err := s.CheckFree(name); err != nil {
			return err
		}
		snap, err := s.Hold(e.Manifest.ID)
		if err != nil {
			return err
		}
		defer snap.HandOver()
		if err := snap.keep(ctx); err != nil {
			return err
		}
	}
	return s.withLock(func() error {
		e, err := s.Find(ref)
		if err = errors.Join(err, e.Err); err != nil {
			return err
		}
		if e.Manifest.Name == name {
			return nil
		}
		if name == "" {
			return fmt.Errorf("%w: a snapshot's new name is empty", vm.ErrInvalid)
		}
		if err := s.CheckFree(name); err != nil {
			return err
		}
		e.Manifest.Name = name
		return e.Manifest.write(e.Dir)
	})
}

func (m *Manifest) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, manifestName)
	if err := atomicfile.Write(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, noSpace(err, dir))
	}
	return nil
}

// Remove drops a snapshot that nobody uses; one that is gone already is no
// error. The error wraps ErrInUse while VMs run from it.
func (s *Store) Remove(id string) error {
	return s.withLock(func() error { return s.remove(id) })
}

// removeIf is Remove, for a snapshot that is still so when nobody can rename it
// any more.
func (s *Store) removeIf(id string, is func(*Manifest) bool) error {
	return s.withLock(func() error {
		m, err := readManifest(filepath.Join(s.path(id), manifestName), id)
		if err != nil || !is(&m) {
			return err
		}
		return s.remove(id)
	})
}

func (s *Store) remove(id string) error {
	l, err := lockDir(s.path(id), ofdlock.Exclusive)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	case l == nil:
		return fmt.Errorf("%w: VMs run from %s; stop them first (fcvm ls shows them)", ErrInUse, id)
	}
	defer func() { _ = l.Close() }()
	return s.drop(s.path(id), id)
}

// drop takes a directory out of sight in one step before it deletes it, so
// that a crash leaves no half of a snapshot.
func (s *Store) drop(dir, id string) error {
	trash := filepath.Join(s.dir, trashPrefix+id)
	if err := os.Rename(dir, trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return nil
}

// Sweep removes what nobody will ask for any more: drafts and trash of
// processes that were killed, and snapshots without a name whose last user has
// gone. What cannot be removed now is tried again next time. It costs a look at
// one directory where there is nothing to do.
func (s *Store) Sweep() {
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, d := range dirs {
		switch id, isDraft := strings.CutPrefix(d.Name(), draftPrefix); {
		case strings.HasPrefix(d.Name(), trashPrefix):
			_ = os.RemoveAll(filepath.Join(s.dir, d.Name()))
		case isDraft:
			// Under the store's lock: a draft has its own from its first moment.
			_ = s.withLock(func() error { return s.sweepDraft(id) })
		case d.IsDir() && vm.ValidID(d.Name()):
			s.sweepNameless(d.Name())
		}
	}
}

func (s *Store) sweepDraft(id string) error {
	l, err := lockDir(s.draft(id), ofdlock.Exclusive)
	if err == nil && l == nil {
		return nil // it is being made
	}
	if l != nil {
		defer func() { _ = l.Close() }()
	}
	return s.drop(s.draft(id), id)
}

func (s *Store) sweepNameless(id string) {
	e := s.entry(id)
	if e.Err != nil || !e.Manifest.nameless() || e.InUse {
		return
	}
	_ = s.removeIf(id, (*Manifest).nameless)
}

// age is for how long a snapshot has been there, which may be much less than
// since its guest stood still.
func (s *Store) age(id string) time.Duration {
	st, err := os.Stat(filepath.Join(s.path(id), manifestName))
	if err != nil {
		return 0
	}
	return time.Since(st.ModTime())
}
