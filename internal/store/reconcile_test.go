package store

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

// After a restart of the host a record says so, and the process that has the
// VMM's id by then, even with the same start time, is left alone.
func TestReboot(t *testing.T) {
	s := newStore(t)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = other.Wait(); close(ended) }()
	defer func() { _ = other.Process.Kill(); <-ended }()
	start, err := proc.StartTime(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	v := create(t, s, "web")
	if v.Record().Boot == "" || v.Record().Boot != proc.BootID() {
		t.Errorf("boot id %q", v.Record().Boot)
	}
	if err := v.Update(func(r *vm.Record) error {
		r.Boot = "11111111-2222-3333-4444-555555555555"
		r.Status, r.Ready = vm.StatusRunning, true
		r.Resolved.VMM = vm.Process{PID: other.Process.Pid, Start: start}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	// Its control group went with the host.
	if err := os.Symlink("/sys/fs/cgroup/fcvm-"+v.id, v.Dir().Cgroup()); err != nil {
		t.Fatal(err)
	}
	e, err := s.Find("web")
	if err != nil || e.Alive || e.Record.Status != vm.StatusFailed || e.Record.Ready || !strings.Contains(e.Record.Reason, "host went down, or was restarted, while the VM was running") {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := os.Lstat(v.Dir().Cgroup()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link to its control group is left: %v", err)
	}
	select {
	case <-ended:
		t.Error("a process of this boot was killed for a VMM of another")
	default:
	}
	if stored, err := s.read(v.id); err != nil || stored.Reason != e.Record.Reason {
		t.Errorf("stored: %+v, %v", stored, err)
	}
}

// A link that leads elsewhere is not followed, and keeps nobody from learning
// what happened.
func TestForeignControlGroup(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "web")
	kept := t.TempDir()
	if err := os.Symlink(kept, v.Dir().Cgroup()); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if es := list(t, s); len(es) != 1 || es[0].Record.Status != vm.StatusFailed {
		t.Errorf("%+v", es)
	}
	if r, err := s.read(v.id); err != nil || r.Status != vm.StatusFailed {
		t.Errorf("not written down: %s, %v", r.Status, err)
	}
	if err := os.Symlink(kept, v.Dir().Cgroup()); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(v.id); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

// The control socket of a VM that is gone is removed, if nobody answers at it.
func TestLostSockets(t *testing.T) {
	s := newStore(t)
	dir := s.layout.ControlSockets()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	v := create(t, s, "web")
	listen := func(id string, age time.Duration, answers bool) string {
		t.Helper()
		path := filepath.Join(dir, id+paths.ControlSuffix)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if answers {
			t.Cleanup(func() { _ = l.Close() })
		} else {
			l.SetUnlinkOnClose(false)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
		return path
	}
	lost := listen("aaaaaaaaaaaa", time.Minute, false)
	kept := []string{
		listen("bbbbbbbbbbbb", time.Minute, true),              // of another data directory
		listen("cccccccccccc", 0, false),                       // being made
		listen(v.id, time.Minute, false),                       // its supervisor lives
		listen("not-an-id", time.Minute, false),                // not ours
		filepath.Join(dir, "dddddddddddd"+paths.ControlSuffix), // not a socket
	}
	if err := os.WriteFile(kept[4], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(kept[4], time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	list(t, s)
	if _, err := os.Lstat(lost); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", lost, err)
	}
	for _, path := range kept {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// A data directory that is full: who has a VM can say how it ended, and who
// finds one that was lost, too.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts a small disk")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Skip("mount a small disk: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(paths.Layout{Data: filepath.Join(dir, "data"), Runtime: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	ended, lost, later := create(t, s, "ended"), create(t, s, "lost"), create(t, s, "later")
	for _, v := range []*VM{ended, lost, later} {
		for _, to := range []vm.Status{vm.StatusStarting, vm.StatusRunning} {
			if err := v.Move(to, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if err := ended.Move(vm.StatusExited, "its own reason"); err != nil {
		t.Errorf("the last words of a VM on a disk that is full: %v", err)
	}
	if err := os.Remove(later.Dir().Reserve()); err != nil { // as if somebody had used it
		t.Fatal(err)
	}
	// What that has freed is filled again.
	f, err := os.OpenFile(fill, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(bytes.Repeat([]byte{1}, 4096))
	}
	_ = f.Close()
	for _, v := range []*VM{ended, lost, later} {
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"ended": "its own reason", "lost": "without a word", "later": "without a word"}
	check := func(es []Entry) {
		t.Helper()
		for _, e := range es {
			if e.Err != nil || !e.Record.Status.Final() || !strings.Contains(e.Record.Reason, want[e.Record.Name]) {
				t.Errorf("%s is %s (%s), %v", e.Record.Name, e.Record.Status, e.Record.Reason, e.Err)
			}
		}
		if len(es) != len(want) {
			t.Errorf("%d VMs, want %d", len(es), len(want))
		}
	}
	check(list(t, s))
	if r, err := s.read(lost.id); err != nil || r.Status != vm.StatusFailed {
		t.Errorf("not written down: %s, %v", r.Status, err)
	}
	if _, err := s.Create("new", vm.Spec{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a new VM on a disk that is full: %v", err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	check(list(t, s))
	if r, err := s.read(later.id); err != nil || r.Status != vm.StatusFailed {
		t.Errorf("not written down once there is room: %s, %v", r.Status, err)
	}
	for _, v := range []*VM{ended, lost, later} {
		if err := s.Remove(v.id); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(s.layout.VMs()); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// A VM that has ended is known to have without its record being read; one that
// was lost is not.
func TestMarks(t *testing.T) {
	s := newStore(t)
	ended, lost := create(t, s, "ended"), create(t, s, "lost")
	for _, to := range []vm.Status{vm.StatusStarting, vm.StatusExited} {
		if err := ended.Move(to, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []*VM{ended, lost} {
		if _, marked := look(v.Dir().Lock()); marked {
			t.Errorf("%s is marked while its supervisor lives", v.Record().Name)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, marked := look(ended.Dir().Lock()); !marked {
		t.Error("a VM that has ended is not marked")
	}
	if _, marked := look(lost.Dir().Lock()); marked {
		t.Error("a VM that was lost is marked")
	}
	if found, err := s.scan(false); err != nil || !found.untidy || len(found.entries) != 1 {
		t.Errorf("before: %+v, %v", found, err)
	}
	if err := s.Reconcile(); err != nil {
		t.Fatal(err)
	}
	if found, err := s.scan(false); err != nil || found.untidy || len(found.entries) != 0 {
		t.Errorf("after: %+v, %v", found, err)
	}
}
