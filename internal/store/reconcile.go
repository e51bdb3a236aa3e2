package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/cgroup"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

// Reconcile finds VMs whose supervisor died without ending them properly,
// writes down what happened, and removes what was to be removed and what nobody
// owns any more. Where there is nothing to do it costs a look at each VM's lock,
// and takes none.
func (s *Store) Reconcile() error {
	found, err := s.scan(false)
	if err != nil || !found.untidy {
		return err
	}
	return s.withLock(s.reconcileLocked)
}

// scanned is what lies among the VMs.
type scanned struct {
	entries []Entry
	untidy  bool // there is something to reconcile
}

// scan looks at all VMs without the store's lock, so that a listing never waits
// for a command that holds it. Without all it leaves out those that live, and
// those that are known to have ended.
func (s *Store) scan(all bool) (scanned, error) {
	dirs, err := os.ReadDir(s.layout.VMs())
	if err != nil {
		return scanned{}, fmt.Errorf("list VMs: %w", err)
	}
	found := scanned{entries: make([]Entry, 0, len(dirs)), untidy: len(s.lostSockets(dirs)) > 0}
	for _, d := range dirs {
		if strings.HasPrefix(d.Name(), trashPrefix) {
			found.untidy = true
			continue
		}
		if !d.IsDir() || !vm.ValidID(d.Name()) {
			continue // not ours
		}
		// In this order: a supervisor writes the last word before it lets go.
		alive, ended := look(s.layout.VM(d.Name()).Lock())
		if !all && (alive || ended) {
			continue
		}
		rec, err := s.read(d.Name())
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile, or not written yet
			found.untidy = found.untidy || !alive
			continue
		}
		e := Entry{Record: rec, Err: err, Alive: alive}
		if e.lost() {
			found.untidy = true
		}
		found.entries = append(found.entries, e)
	}
	return found, nil
}

// lost reports whether a VM has ended without its record saying so.
func (e *Entry) lost() bool { return e.Err == nil && !e.Alive && !e.Record.Status.Final() }

// settle writes the end of a VM that was lost into its record.
func settle(r *vm.Record) {
	why := fmt.Sprintf("its supervisor (process %d) ended without a word while the VM was %s", r.Supervisor.PID, r.Status)
	if restarted(r) {
		why = fmt.Sprintf("the host went down, or was restarted, while the VM was %s", r.Status)
	}
	r.Status, r.Reason = vm.StatusFailed, why
	r.Ready, r.Health = false, ""
	r.History = append(slices.Clip(r.History), vm.Event{Time: time.Now().UTC(), Status: r.Status, Reason: why})
}

// restarted reports whether the host has been restarted since the VM was made.
func restarted(r *vm.Record) bool {
	now := proc.BootID()
	return r.Boot != "" && now != "" && r.Boot != now
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
	for _, path := range s.lostSockets(dirs) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("reconcile: %w", err))
		}
	}
	return errors.Join(errs...)
}

// lostAge is how old a control socket without a VM must be to be taken for
// lost: one that is just being made does not answer yet.
const lostAge = time.Second

// lostSockets are the control sockets of VMs that are gone, and whose supervisor
// died just before it could remove them. One that answers belongs to a VM of
// another data directory.
func (s *Store) lostSockets(vms []fs.DirEntry) []string {
	sockets, err := os.ReadDir(s.layout.ControlSockets())
	if err != nil {
		return nil // there are none
	}
	have := make(map[string]bool, len(vms))
	for _, d := range vms {
		have[d.Name()] = true
	}
	var lost []string
	for _, e := range sockets {
		id, isSocket := strings.CutSuffix(e.Name(), paths.ControlSuffix)
		if !isSocket || !vm.ValidID(id) || have[id] || e.Type()&fs.ModeSocket == 0 {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < lostAge {
			continue
		}
		path := filepath.Join(s.layout.ControlSockets(), e.Name())
		c, err := net.Dial("unix", path)
		if err == nil {
			_ = c.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			lost = append(lost, path)
		}
	}
	return lost
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
		mark(l)
		return nil
	}
	if !restarted(&rec) { // else that id is another process's by now
		endVMM(rec.Resolved.VMM)
	}
	if err := s.removeCgroup(id); err != nil {
		return err
	}
	if err := s.layout.RemoveControlSocket(id); err != nil {
		return err
	}
	settle(&rec)
	if rec.Spec.Remove {
		if err := s.removeDir(id); err != nil {
			return err
		}
		s.tell(events.Stopped, &rec, rec.Reason)
		s.tell(events.Removed, &rec, "")
		return nil
	}
	if err := writeRecord(dir, &rec, writeJSON); err != nil {
		return err
	}
	mark(l)
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
	if err := cgroup.Remove(ctx, dir, id); err != nil && !errors.Is(err, cgroup.ErrForeign) {
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
