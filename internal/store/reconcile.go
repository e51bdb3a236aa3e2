package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/cgroup"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

// Reconcile finds VMs whose supervisor died without ending them properly,
// writes down what happened, and removes what was to be removed. It costs a
// directory read and a look at one lock per VM.
func (s *Store) Reconcile() error {
	if !s.needsReconcile() {
		return nil
	}
	return s.withLock(s.reconcileLocked)
}

// needsReconcile looks without the store's lock, so that a listing never
// waits for a command that holds it.
func (s *Store) needsReconcile() bool {
	dirs, err := os.ReadDir(s.layout.VMs())
	if err != nil {
		return false
	}
	for _, d := range dirs {
		if strings.HasPrefix(d.Name(), trashPrefix) {
			return true
		}
		if !d.IsDir() || !vm.ValidID(d.Name()) || s.alive(d.Name()) {
			continue
		}
		rec, err := s.read(d.Name())
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !rec.Status.Final()) {
			return true
		}
	}
	return false
}

func (s *Store) reconcileLocked() error {
	dirs, err := os.ReadDir(s.layout.VMs())
	if err != nil {
		return fmt.Errorf("list VMs: %w", err)
	}
	var errs []error
	for _, d := range dirs {
		switch {
		case strings.HasPrefix(d.Name(), trashPrefix):
			err = os.RemoveAll(filepath.Join(s.layout.VMs(), d.Name()))
		case d.IsDir() && vm.ValidID(d.Name()):
			err = s.reconcileVM(d.Name())
		default:
			continue // not ours
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reconcile %s: %w", d.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) reconcileVM(id string) error {
	dir := s.layout.VM(id)
	l, err := tryLock(dir.Lock())
	if err != nil || l == nil {
		return err // nobody gets it while the supervisor lives
	}
	defer func() { _ = l.Close() }()
	rec, err := s.read(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.removeDir(id) // died in the middle of Create
	case err != nil:
		return nil // broken: it is listed so, and only rm removes it
	case rec.Status.Final():
		return nil
	}
	endVMM(rec.Resolved.VMM)
	if err := s.removeCgroup(id); err != nil {
		return err
	}
	if err := s.layout.RemoveControlSocket(id); err != nil {
		return err
	}
	from := rec.Status
	rec.Status = vm.StatusFailed
	rec.Reason = fmt.Sprintf("its supervisor (process %d) ended without a word while the VM was %s", rec.Supervisor.PID, from)
	rec.History = append(rec.History, vm.Event{Time: time.Now().UTC(), Status: rec.Status, Reason: rec.Reason})
	if rec.Spec.Remove {
		if err := s.removeDir(id); err != nil {
			return err
		}
		s.tell(events.Stopped, &rec, rec.Reason)
		s.tell(events.Removed, &rec, "")
		return nil
	}
	if err := writeJSON(dir.Record(), &rec); err != nil {
		return err
	}
	s.tell(events.Stopped, &rec, rec.Reason)
	return nil
}

// cgroupTimeout bounds the end of what is left in a VM's control group.
const cgroupTimeout = 5 * time.Second

// removeCgroup ends what is left of a VM's processes and removes their group.
// After a reboot there is nothing of it.
func (s *Store) removeCgroup(id string) error {
	link := s.layout.VM(id).Cgroup()
	dir, err := os.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the control group of VM %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cgroupTimeout)
	defer cancel()
	if err := cgroup.Remove(ctx, dir, id); err != nil {
		return err
	}
	return os.Remove(link)
}

// endVMM kills a VMM that outlived its supervisor. The kernel has done so
// already (parent-death signal); this is for the moment in between.
func endVMM(p vm.Process) {
	if p.PID > 1 && proc.Alive(p.PID, p.Start) {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
}
