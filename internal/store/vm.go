package store

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vm"
)

// VM is a record in the hands of its supervisor. Its methods are safe for
// concurrent use.
type VM struct {
	store *Store
	id    string
	lock  *os.File

	mu  sync.Mutex
	rec vm.Record
}

// Record returns a copy of the record as it stands.
func (v *VM) Record() vm.Record {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rec
}

// Dir is the VM's directory.
func (v *VM) Dir() paths.VMDir { return v.store.layout.VM(v.id) }

// Update changes the record and writes it; when either fails the record stays
// as it was. Only the end waits for the disk: no VM outlives its host, and what is
// said of one before its end is of use to those who look while the host is up.
func (v *VM) Update(change func(*vm.Record) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.rec
	if err := change(&v.rec); err != nil {
		v.rec = old
		return err
	}
	write := writeJSONSoon
	if v.rec.Status.Final() {
		write = writeJSON
	}
	if err := writeRecord(v.Dir(), &v.rec, write); err != nil {
		v.rec = old
		return err
	}
	return nil
}

// Move changes the status.
func (v *VM) Move(to vm.Status, reason string) error {
	return v.Update(func(r *vm.Record) error { return r.Move(to, reason, time.Now()) })
}

// Tell writes an event of this VM. One that cannot be written is lost.
func (v *VM) Tell(kind events.Kind, detail string) {
	r := v.Record()
	v.store.tell(kind, &r, detail)
}

// Close lets go of the lock: the VM counts as ended from here on.
func (v *VM) Close() error {
	if r := v.Record(); r.Status.Final() {
		mark(v.lock)
	}
	if err := v.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("let go of VM %s: %w", v.id, err)
	}
	return nil
}

// Remove drops the VM with its directory and closes it.
func (v *VM) Remove() error {
	err := v.store.withLock(func() error { return v.store.removeDir(v.id) })
	if err == nil {
		v.Tell(events.Removed, "")
	}
	return errors.Join(err, v.Close())
}
