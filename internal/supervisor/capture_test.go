package supervisor

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// guest is a machine whose VMM is this process, or has ended.
type guest struct {
	vmm.Machine
	pid int
}

func (g guest) PID() int { return g.pid }

// wholeGuest is one whose VMM may write all of its memory.
type wholeGuest struct {
	guest
	whole bool
}

func (g wholeGuest) WritesWhole() bool { return g.whole }

func TestMemoryRoom(t *testing.T) {
	const memory, parent = 1 << 40, 1 << 30
	here := guest{pid: os.Getpid()}
	for _, c := range []struct {
		name     string
		machine  vmm.Machine
		memory   int64
		from, to int64
	}{
		{"what it has touched", here, memory, parent + 1, memory / 2},
		{"no more than there is", here, parent, parent, parent},
		{"with zeros", wholeGuest{here, true}, memory, memory, memory},
		{"only what has changed", wholeGuest{here, false}, memory, parent + 1, memory / 2},
		{"a VMM that cannot be looked at", guest{pid: -1}, memory, memory, memory},
	} {
		if got := memoryRoom(c.machine, c.memory, parent); got < c.from || got > c.to {
			t.Errorf("%s: %d, not %d to %d", c.name, got, c.from, c.to)
		}
	}
}

func (g guest) Pause(context.Context) error  { return nil }
func (g guest) Resume(context.Context) error { return nil }

func (g guest) Snapshot(_ context.Context, to vmm.SnapshotFiles) error {
	return errors.Join(os.WriteFile(to.Memory, []byte("memory"), 0o600), os.WriteFile(to.State, []byte("state"), 0o600))
}

func (g guest) FinishSnapshot(context.Context, vmm.SnapshotFiles) error { return nil }

func (g guest) DropSnapshot(vmm.SnapshotFiles) {}

// A snapshot is of the time at which its guest stood still, however long it takes
// to finish it: a VM that was paused meanwhile is not as it says.
func TestSnapshotIsOfTheTimeOfItsFreeze(t *testing.T) {
	st, err := store.Open(paths.Layout{Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{Image: "img", Driver: "qemu", CPUs: 1, MemoryMiB: 512, Init: vm.InitAgent, Logs: vm.LogsFile}
	v, err := st.Create("web", spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	if err := os.WriteFile(filepath.Join(string(v.Dir()), paths.InitrdName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	snapshots := snapshot.New(t.TempDir())
	draft, err := snapshots.Begin("x", 0)
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{life: &life{vm: v, Options: Options{Verbose: func(string) {}}}, machine: guest{}}
	c := &capture{
		in: in, machine: guest{}, draft: draft, names: []string{snapshot.MemoryName, snapshot.StateName},
		files:    vmm.SnapshotFiles{Memory: draft.Path(snapshot.MemoryName), State: draft.Path(snapshot.StateName)},
		manifest: snapshot.Manifest{Source: snapshot.Source{ID: v.Record().ID}, Spec: spec, Guest: snapshot.GuestRunning},
	}
	began := time.Now()
	if err := c.freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	paused := time.Now()
	snap, err := c.finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snap.HandOver()
	if at := snap.Manifest.Created; at.Before(began) || at.After(paused) {
		t.Errorf("it was frozen from %s to %s, and says %s", began, paused, at)
	}
	if e, ok := snapshots.Newest(v.Record().ID, paused); ok {
		t.Errorf("since the VM was paused %s was taken", e.Manifest.Title())
	}
}

// flakyGuest is a machine whose calls can fail, and which knows whether it stands
// still.
type flakyGuest struct {
	guest
	pauses, resumes []error // of the calls to come; then nil
	done            chan struct{}
	still           bool
	asked           int // to resume
}

func (g *flakyGuest) Done() <-chan struct{} { return g.done }

func (g *flakyGuest) Exit() vmm.Exit { return vmm.Exit{Reason: "it has ended"} }

func next(errs *[]error) error {
	if len(*errs) == 0 {
		return nil
	}
	err := (*errs)[0]
	*errs = (*errs)[1:]
	return err
}

// Pause stops the guest even where it fails, as one does that is given up.
func (g *flakyGuest) Pause(ctx context.Context) error {
	g.still = true
	return errors.Join(ctx.Err(), next(&g.pauses))
}

func (g *flakyGuest) Resume(ctx context.Context) error {
	g.asked++
	err := errors.Join(ctx.Err(), next(&g.resumes))
	g.still = err != nil
	return err
}

// newInstance is a VM that runs on a machine.
func newInstance(t *testing.T, m vmm.Machine) *instance {
	t.Helper()
	st, err := store.Open(paths.Layout{Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	v, err := st.Create("web", vm.Spec{Image: "img", Driver: "qemu", CPUs: 1, MemoryMiB: 512, Init: vm.InitAgent, Logs: vm.LogsFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	if err := errors.Join(v.Move(vm.StatusStarting, ""), v.Move(vm.StatusRunning, "")); err != nil {
		t.Fatal(err)
	}
	_, signals := newSignals(t)
	in := &instance{life: &life{vm: v, signals: signals, Options: Options{Verbose: func(string) {}}}, machine: m, gone: newLatch(), failure: newLatch()}
	in.agent = serveAgent(t, http.NotFound) // it does not set its clock
	in.current = in
	return in
}

// Whatever goes wrong with a snapshot, its guest goes on.
func TestAGuestGoesOnAfterItsSnapshot(t *testing.T) {
	failed := errors.New("failed")
	ended := make(chan struct{})
	close(ended)
	for _, c := range []struct {
		name  string
		guest *flakyGuest
		gone  bool // whoever has asked
		f     error
		want  error
		still bool
	}{
		{"all is well", &flakyGuest{}, false, nil, nil, false},
		{"it fails", &flakyGuest{}, false, failed, failed, false},
		{"nobody waits", &flakyGuest{}, true, nil, nil, false},
		{"a pause fails half-way", &flakyGuest{pauses: []error{failed}}, false, nil, failed, false},
		{"it does not go on at once", &flakyGuest{resumes: []error{failed}}, false, nil, nil, false},
		{"the VMM is gone", &flakyGuest{resumes: []error{failed}, done: ended}, false, failed, failed, true},
	} {
		in := newInstance(t, c.guest)
		ctx, cancel := context.WithCancel(t.Context())
		if c.gone {
			cancel()
		}
		ran, pauseFails := false, len(c.guest.pauses) > 0
		_, err := in.whilePaused(ctx, func() error { ran = c.guest.still; return c.f })
		cancel()
		if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) || c.guest.still != c.still {
			t.Errorf("%s: %v; it stands still: %t", c.name, err, c.guest.still)
		}
		if ran == pauseFails {
			t.Errorf("%s: saved while it stood still: %t", c.name, ran)
		}
	}
}

// A guest that does not go on after its snapshot keeps nobody from ending its VM.
func TestAGuestThatDoesNotGoOnIsStopped(t *testing.T) {
	g := &flakyGuest{resumes: slices.Repeat([]error{errors.New("failed")}, 10)}
	in := newInstance(t, g)
	in.signals.setForward(func(sig int) {
		if sig == int(syscall.SIGKILL) {
			in.gone.set(nil)
		}
	})
	paused := make(chan struct{})
	go func() {
		in.capturing.Lock()
		defer in.capturing.Unlock()
		_, _ = in.whilePaused(context.Background(), func() error { close(paused); return nil })
	}()
	<-paused
	if err := (*commands)(in.life).Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if len(g.resumes) == 0 {
		t.Errorf("only after %d tries", g.asked)
	}
}

// patientGuest is a machine that is saved only if nobody gives that up.
type patientGuest struct {
	flakyGuest
	leave func()
}

func (g *patientGuest) Snapshot(ctx context.Context, to vmm.SnapshotFiles) error {
	g.leave()
	return errors.Join(ctx.Err(), g.guest.Snapshot(ctx, to))
}

// A VMM that saves its machine is not given up when whoever has asked goes away:
// it would go on with that, and not do what it is told meanwhile.
func TestWhoAsksForASnapshotGoesAway(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g := &patientGuest{leave: cancel}
	in := newInstance(t, g)
	draft, err := snapshot.New(t.TempDir()).Begin("x", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Abort()
	if err := os.WriteFile(filepath.Join(string(in.vm.Dir()), paths.InitrdName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &capture{
		in: in, machine: g, draft: draft,
		files: vmm.SnapshotFiles{Memory: draft.Path(snapshot.MemoryName), State: draft.Path(snapshot.StateName)},
	}
	if err := c.freeze(ctx); err != nil || g.still {
		t.Errorf("%v; it stands still: %t", err, g.still)
	}
}

// droppingGuest is a machine that knows which of its snapshots were given up.
type droppingGuest struct {
	flakyGuest
	dropped []vmm.SnapshotFiles
}

func (g *droppingGuest) DropSnapshot(to vmm.SnapshotFiles) { g.dropped = append(g.dropped, to) }

// A VMM does not keep what it needs to finish a snapshot whose disks could not be
// copied.
func TestASnapshotThatFailsIsGivenUp(t *testing.T) {
	g := &droppingGuest{}
	in := newInstance(t, g)
	draft, err := snapshot.New(t.TempDir()).Begin("x", 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{
		in: in, machine: g, draft: draft, manifest: snapshot.Manifest{Disks: []snapshot.Disk{{Name: "missing"}}},
		files: vmm.SnapshotFiles{Memory: draft.Path(snapshot.MemoryName), State: draft.Path(snapshot.StateName)},
	}
	if err := c.freeze(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if len(g.dropped) != 1 || g.dropped[0] != c.files {
		t.Errorf("given up: %v", g.dropped)
	}
}

// Only a snapshot that somebody has named is waited for until it is on the disk.
func TestWhichSnapshotsAreWaitedFor(t *testing.T) {
	for _, c := range []struct {
		options captureOptions
		waits   bool
	}{{captureOptions{name: "warm"}, true}, {captureOptions{}, false}, {captureOptions{key: "key"}, false}} {
		in := newInstance(t, guest{pid: os.Getpid()})
		in.artifacts, in.Snapshots = &setup.Artifacts{}, snapshot.New(t.TempDir())
		capture, err := in.newCapture(c.options)
		if err != nil {
			t.Fatal(err)
		}
		if waits := capture.draft.Boot == ""; waits != c.waits {
			t.Errorf("%+v: %t", c.options, waits)
		}
		capture.draft.Abort()
	}
}

// Of a VM that writes to a block device there is no snapshot, and its guest does not
// stand still until that shows.
func TestABlockDeviceIsNotSaved(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		in := newInstance(t, guest{pid: os.Getpid()})
		dir := t.TempDir()
		in.artifacts, in.Snapshots = &setup.Artifacts{}, snapshot.New(dir)
		in.volumes = []volumeDisk{{path: "/dev/sdx", device: true, readOnly: readOnly}}
		c, err := in.newCapture(captureOptions{name: "x", guest: snapshot.GuestRunning})
		if refused := errors.Is(err, vm.ErrInvalid) && strings.Contains(err.Error(), "/dev/sdx"); refused == readOnly || (err != nil) != refused {
			t.Errorf("read-only %t: %v", readOnly, err)
		}
		if err == nil {
			c.draft.Abort()
		}
		if left, err := filepath.Glob(filepath.Join(dir, ".draft-*")); err != nil || len(left) > 0 {
			t.Errorf("read-only %t: left %v, %v", readOnly, left, err)
		}
	}
}
