package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
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
