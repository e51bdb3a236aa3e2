// Package store keeps the records of VMs on disk and says which of them live.
//
// A VM's directory is made by Create, belongs to the process that holds its
// lock (the supervisor), and goes with Remove. The kernel lets the lock go
// when the supervisor dies, however it dies; the next Reconcile then writes down
// what happened, or removes the directory of a VM that was to be removed anyway.
// There is no other state.
package store

import (
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
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

const (
	maxRecord   = 4 << 20 // bytes of a record; what is larger is not one of ours
	trashPrefix = ".trash-"
	nameTries   = 50 // random names tried before a number is appended
)

// Sentinel errors of the store.
var (
	// ErrNewerSchema: the record was written by a newer fcvm.
	ErrNewerSchema = errors.New("record is of a newer fcvm")
	// ErrBroken: the record cannot be read as one.
	ErrBroken = errors.New("record is broken")
)

// Store is the VMs of one data directory. It is safe for concurrent use, by
// any number of processes.
type Store struct {
	layout paths.Layout
}

// Entry is one VM as a listing shows it. With Err set only Record.ID is sure.
type Entry struct {
	Record vm.Record
	Alive  bool  // its supervisor runs
	Err    error // why the record cannot be read
}

// Open makes the directories and returns the store.
func Open(layout paths.Layout) (*Store, error) {
	for _, dir := range []string{layout.Data, layout.VMs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open data directory %s: %w", layout.Data, err)
		}
	}
	return &Store{layout: layout}, nil
}

// Tidy reconciles the VMs of a data directory that may not be there, for
// commands that have nothing else to do with VMs. What it cannot do, another
// command will.
func Tidy(layout paths.Layout) { _ = (&Store{layout: layout}).Reconcile() }

// Layout says where the store's files lie.
func (s *Store) Layout() paths.Layout { return s.layout }

// withLock runs f while no other process creates, renames or removes VMs.
func (s *Store) withLock(f func() error) error {
	l := flock.New(s.layout.Lock(), flock.SetPermissions(0o600))
	if err := l.Lock(); err != nil {
		return fmt.Errorf("lock %s: %w", s.layout.Lock(), err)
	}
	defer func() { _ = l.Close() }()
	return f()
}

// Create makes a VM's directory and record and takes its lock. An empty name
// is replaced by a random one. The error wraps vm.ErrNameTaken when a VM that
// exists has that name.
func (s *Store) Create(name string, spec vm.Spec) (*VM, error) {
	if name != "" {
		if err := vm.CheckName(name); err != nil {
			return nil, err
		}
	}
	var v *VM
	err := s.withLock(func() error {
		found, err := s.scan(true)
		if err == nil && found.untidy {
			_ = s.reconcileLocked() // what cannot be reconciled is no other VM's trouble
			found, err = s.scan(true)
		}
		if err != nil {
			return err
		}
		taken := map[string]vm.Record{}
		for _, e := range found.entries {
			if e.Err == nil {
				taken[e.Record.Name] = e.Record
			}
		}
		if name == "" {
			name = freeName(taken)
		} else if r, ok := taken[name]; ok {
			return nameTaken(&r)
		}
		v, err = s.create(name, spec)
		return err
	})
	return v, err
}

func freeName(taken map[string]vm.Record) string {
	for range nameTries {
		n := vm.NewName()
		if _, ok := taken[n]; !ok {
			return n
		}
	}
	return vm.NewName() + "-" + vm.NewID()[:4]
}

func (s *Store) create(name string, spec vm.Spec) (*VM, error) {
	now := time.Now().UTC()
	start, err := proc.StartTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	id := vm.NewID()
	v := &VM{store: s, id: id, rec: vm.Record{
		Schema: vm.RecordSchema, ID: id, Name: name, Created: now, Spec: spec,
		Status: vm.StatusCreated, History: []vm.Event{{Time: now, Status: vm.StatusCreated}},
		Supervisor: vm.Process{PID: os.Getpid(), Start: start}, Boot: proc.BootID(),
	}}
	dir := s.layout.VM(id)
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		return nil, fmt.Errorf("create VM %s: %w", name, err)
	}
	if v.lock, err = tryLock(dir.Lock()); err == nil {
		if v.lock == nil {
			err = errors.New("somebody else has locked its new directory")
		} else if err = writeRecord(dir, &v.rec, writeJSONSoon); err != nil {
			_ = v.lock.Close()
		}
	}
	if err != nil {
		_ = os.RemoveAll(string(dir))
		return nil, fmt.Errorf("create VM %s: %w", name, err)
	}
	return v, nil
}

// List returns every VM, oldest first. A record that cannot be read is an
// entry with Err set; it never fails the listing. Nor does a VM whose end cannot
// be written down, as in a data directory that is read-only or full: it is
// listed as ended all the same.
func (s *Store) List() ([]Entry, error) {
	found, err := s.scan(true)
	if err == nil && found.untidy {
		_ = s.withLock(s.reconcileLocked)
		found, err = s.scan(true)
	}
	if err != nil {
		return nil, err
	}
	for i := range found.entries {
		if e := &found.entries[i]; e.lost() {
			settle(&e.Record)
		}
	}
	return found.sorted(), nil
}

// list returns the VMs as their records have them.
func (s *Store) list() ([]Entry, error) {
	found, err := s.scan(true)
	return found.sorted(), err
}

func (f scanned) sorted() []Entry {
	slices.SortStableFunc(f.entries, func(a, b Entry) int { return a.Record.Created.Compare(b.Record.Created) })
	return f.entries
}

// read returns the record; even with an error its ID is set.
func (s *Store) read(id string) (vm.Record, error) {
	broken := vm.Record{ID: id}
	f, err := os.Open(s.layout.VM(id).Record())
	if err != nil {
		return broken, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return broken, err
	}
	if len(b) > maxRecord {
		return broken, fmt.Errorf("%w: %s is larger than %d bytes", ErrBroken, f.Name(), maxRecord)
	}
	var rec vm.Record
	unreadable := json.Unmarshal(b, &rec)
	head := struct {
		Schema int    `json:"schema"`
		ID     string `json:"id"`
	}{rec.Schema, rec.ID}
	if unreadable != nil { // as a newer one may be
		if err := json.Unmarshal(b, &head); err != nil {
			return broken, fmt.Errorf("%w: %s: %w", ErrBroken, f.Name(), err)
		}
	}
	switch {
	case head.Schema > vm.RecordSchema:
		return broken, fmt.Errorf("%w: %s has schema %d, this fcvm knows %d", ErrNewerSchema, f.Name(), head.Schema, vm.RecordSchema)
	case unreadable != nil:
		return broken, fmt.Errorf("%w: %s: %w", ErrBroken, f.Name(), unreadable)
	case head.Schema < 1 || head.ID != id:
		return broken, fmt.Errorf("%w: %s has schema %d and id %q", ErrBroken, f.Name(), head.Schema, head.ID)
	}
	return rec, nil
}

// alive reports whether some process holds the VM's lock.
func (s *Store) alive(id string) bool {
	held, _ := look(s.layout.VM(id).Lock())
	return held
}

// Alive reports whether a VM's supervisor runs.
func (s *Store) Alive(id string) bool { return s.alive(id) }

// Find returns the VM with this id, else name, else unique prefix of an id.
func (s *Store) Find(ref string) (Entry, error) {
	entries, err := s.List()
	if err != nil {
		return Entry{}, err
	}
	for _, is := range []func(Entry) bool{
		func(e Entry) bool { return e.Record.ID == ref },
		func(e Entry) bool { return e.Err == nil && e.Record.Name == ref },
	} {
		if i := slices.IndexFunc(entries, is); i >= 0 {
			return entries[i], nil
		}
	}
	var byPrefix []Entry
	for _, e := range entries {
		if ref != "" && strings.HasPrefix(e.Record.ID, ref) {
			byPrefix = append(byPrefix, e)
		}
	}
	switch len(byPrefix) {
	case 0:
		return Entry{}, s.notFound(ref)
	case 1:
		return byPrefix[0], nil
	}
	var names []string
	for _, e := range byPrefix {
		name := e.Record.Name
		if e.Err != nil {
			name = "broken"
		}
		names = append(names, fmt.Sprintf("%s (%s)", e.Record.ID, name))
	}
	return Entry{}, fmt.Errorf("%w: %q fits %s", vm.ErrAmbiguous, ref, strings.Join(names, ", "))
}

// notFound says that there is no such VM, and what became of the last one that
// was called so: it may have ended, and been removed, a moment ago.
func (s *Store) notFound(ref string) error {
	ids := map[string]bool{}
	var end events.Event
	how := ""
	// What cannot be read says nothing.
	_ = events.New(s.layout.Events()).Read(time.Time{}, func(e events.Event) error {
		if e.ID != ref && e.Name != ref && !ids[e.ID] {
			return nil
		}
		ids[e.ID] = true // of whatever name, later on
		switch e.Kind {
		case events.Stopped:
			how = e.Detail
		case events.Removed:
			end = e
		default:
			how, end = "", events.Event{}
		}
		return nil
	})
	if end.ID == "" {
		return fmt.Errorf("%w: %q (list them with: fcvm ls -a)", vm.ErrNotFound, ref)
	}
	if how != "" {
		how = ": " + how
	}
	age := time.Since(end.Time).Round(time.Second)
	return fmt.Errorf("%w: %q: VM %s was removed %s ago%s", vm.ErrNotFound, ref, end.ID, age, how)
}

// Remove drops a VM that has ended, or whose record is broken; one that is
// gone already is no error. The error wraps vm.ErrRunning when its supervisor
// lives.
func (s *Store) Remove(id string) error {
	return s.withLock(func() error {
		l, err := tryLock(s.layout.VM(id).Lock())
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("remove VM %s: %w", id, err)
		}
		if l == nil {
			return fmt.Errorf("remove VM %s: %w", id, vm.ErrRunning)
		}
		defer func() { _ = l.Close() }()
		if err := s.removeCgroup(id); err != nil {
			return err
		}
		rec, _ := s.read(id) // one that is broken has at least its id
		if err := s.removeDir(id); err != nil {
			return err
		}
		s.tell(events.Removed, &rec, "")
		return nil
	})
}

// tell writes an event. One that cannot be written is lost: what it tells of
// has happened all the same.
func (s *Store) tell(kind events.Kind, r *vm.Record, detail string) {
	e := events.Event{Kind: kind, ID: r.ID, Name: r.Name, Image: r.Spec.Image, Detail: detail}
	if kind == events.Stopped {
		e.ExitCode = r.ExitCode
	}
	_ = events.New(s.layout.Events()).Append(e)
}

// removeDir takes the directory out of sight in one step before it deletes
// it, so that a crash leaves no half VM.
func (s *Store) removeDir(id string) error {
	trash := filepath.Join(s.layout.VMs(), trashPrefix+id)
	if err := os.Rename(string(s.layout.VM(id)), trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove VM %s: %w", id, err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove VM %s: %w", id, err)
	}
	return nil
}

func writeJSON(path string, v any) error { return writeWith(atomicfile.Write, path, v) }

func writeJSONSoon(path string, v any) error { return writeWith(atomicfile.WriteSoon, path, v) }

func writeWith(write func(string, []byte, os.FileMode) error, path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := write(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
