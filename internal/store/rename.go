package store

import (
	"fmt"

	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/vm"
)

// Rename gives the VM another name. The error wraps vm.ErrNameTaken when
// another VM has it.
func (v *VM) Rename(name string) error {
	if err := vm.CheckName(name); err != nil {
		return err
	}
	return v.store.withLock(func() error {
		if err := v.store.checkFree(name, v.id); err != nil {
			return err
		}
		old := v.Record().Name
		if err := v.Update(func(r *vm.Record) error {
			r.Name = name
			return nil
		}); err != nil {
			return err
		}
		v.Tell(events.Renamed, old)
		return nil
	})
}

// Rename gives a VM that has ended another name. The error wraps vm.ErrRunning
// when its supervisor lives: that one renames it.
func (s *Store) Rename(id, name string) error {
	if err := vm.CheckName(name); err != nil {
		return err
	}
	return s.withLock(func() error {
		if err := s.checkFree(name, id); err != nil {
			return err
		}
		l, err := tryLock(s.layout.VM(id).Lock())
		if err != nil {
			return fmt.Errorf("rename VM %s: %w", id, err)
		}
		if l == nil {
			return fmt.Errorf("rename VM %s: %w", id, vm.ErrRunning)
		}
		defer func() { _ = l.Close() }()
		rec, err := s.read(id)
		if err != nil {
			return err
		}
		old := rec.Name
		rec.Name = name
		if err := writeRecord(s.layout.VM(id), &rec, writeJSON); err != nil {
			return err
		}
		s.tell(events.Renamed, &rec, old)
		return nil
	})
}

// nameTaken says who has a name, and how to get it.
func nameTaken(r *vm.Record) error {
	remedy := "remove it with: fcvm rm " + r.Name
	if !r.Status.Final() {
		remedy = "choose another, or end and remove that VM with: fcvm rm -f " + r.Name
	}
	return fmt.Errorf("%w: %q belongs to VM %s (%s); %s", vm.ErrNameTaken, r.Name, r.ID, r.Status, remedy)
}

// checkFree refuses a name that a VM other than id has.
func (s *Store) checkFree(name, id string) error {
	entries, err := s.list()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if r := e.Record; e.Err == nil && r.Name == name && r.ID != id {
			return nameTaken(&r)
		}
	}
	return nil
}
