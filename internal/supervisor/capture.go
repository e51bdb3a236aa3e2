package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// Snapshot implements control.VM. A snapshot without a name is left to whoever
// has asked for it.
func (c *commands) Snapshot(ctx context.Context, req control.SnapshotRequest) (control.Snapshotted, error) {
	in, err := c.running()
	if err != nil && !errors.Is(err, vm.ErrPaused) {
		return control.Snapshotted{}, err
	}
	snap, err := in.capture(ctx, captureOptions{name: req.Name, guest: snapshot.GuestRunning})
	if err != nil {
		return control.Snapshotted{}, err
	}
	defer snap.HandOver()
	return control.Snapshotted{ID: snap.Manifest.ID, Name: snap.Manifest.Name, Pause: snap.Manifest.Pause}, nil
}

// captureOptions say what becomes of a snapshot.
type captureOptions struct {
	name  string // empty: it goes with its last user
	key   string // of an automatic one
	guest snapshot.GuestState
}

// capture takes a snapshot of the VM, which stands still for as long as its
// memory, its devices and its disks are saved, and no longer.
func (in *instance) capture(ctx context.Context, o captureOptions) (*snapshot.Snapshot, error) {
	c, err := in.newCapture(o)
	if err != nil {
		return nil, err
	}
	err = c.freeze(ctx)
	var clock sync.WaitGroup
	clock.Go(func() { in.catchUp(ctx) })
	defer clock.Wait()
	if err != nil {
		return nil, err
	}
	return c.finish(ctx)
}

// capture is a snapshot that is being taken: first freeze, then finish.
type capture struct {
	in       *instance
	machine  vmm.Snapshotter
	draft    *snapshot.Draft
	files    vmm.SnapshotFiles
	names    []string // of all files
	manifest snapshot.Manifest
}

func (in *instance) newCapture(o captureOptions) (*capture, error) {
	m, ok := in.machine.(vmm.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("%w: snapshots with %s", vmm.ErrUnsupported, in.driver.Name())
	}
	if i := slices.IndexFunc(in.volumes, func(d volumeDisk) bool { return d.device && !d.readOnly }); i >= 0 {
		return nil, fmt.Errorf("%w: take a snapshot of VM %s: it writes to the block device %s, which a snapshot cannot copy; run it with that read-only",
			vm.ErrInvalid, in.vm.Record().Name, in.volumes[i].path)
	}
	draft, err := in.Snapshots.Begin(o.name, in.snapshotSize())
	if err != nil {
		return nil, err
	}
	if o.name == "" { // it is a cache, or goes with its last user
		draft.Boot = proc.BootID()
	}
	return &capture{
		in: in, machine: m, draft: draft, manifest: in.manifest(o),
		files: vmm.SnapshotFiles{Memory: draft.Path(snapshot.MemoryName), State: draft.Path(snapshot.StateName)},
		names: []string{snapshot.MemoryName, snapshot.StateName, paths.InitrdName},
	}, nil
}

// freeze saves what changes while the guest runs.
func (c *capture) freeze(ctx context.Context) (err error) {
	c.in.capturing.Lock()
	defer c.in.capturing.Unlock()
	defer func() {
		if err != nil {
			err = c.failed(err)
		}
	}()
	c.manifest.Pause, err = c.in.whilePaused(ctx, func() error {
		c.manifest.Created = time.Now().UTC()
		// A VMM that has begun goes on with it, whether or not somebody waits.
		if err := c.machine.Snapshot(context.WithoutCancel(ctx), c.files); err != nil {
			return err
		}
		for _, disk := range c.manifest.Disks {
			if disk.ReadOnly {
				continue
			}
			if err := rootfs.CopySparse(ctx, c.draft.Path(disk.Name), filepath.Join(string(c.in.vm.Dir()), disk.Name)); err != nil {
				return err
			}
			c.names = append(c.names, disk.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// The VMM is told of it again when a snapshot is loaded; the file that setup
	// has made goes when there is a newer agent.
	return os.Link(filepath.Join(string(c.in.vm.Dir()), paths.InitrdName), c.draft.Path(paths.InitrdName))
}

// finish does what needs no guest that stands still.
func (c *capture) finish(ctx context.Context) (*snapshot.Snapshot, error) {
	if err := c.machine.FinishSnapshot(ctx, c.files); err != nil {
		return nil, c.failed(err)
	}
	snap, err := c.draft.Commit(ctx, c.manifest, c.names)
	if err != nil {
		return nil, c.failed(err)
	}
	c.in.Verbose(fmt.Sprintf("snapshot %s: the guest stood still for %s", snap.Manifest.Title(), snap.Manifest.Pause.Round(time.Millisecond)))
	return snap, nil
}

func (c *capture) failed(err error) error {
	c.machine.DropSnapshot(c.files)
	c.draft.Abort()
	return fmt.Errorf("take a snapshot of VM %s: %w", c.in.vm.Record().Name, err)
}

// whilePaused runs f while the guest stands still, and reports for how long it
// did. A VM that somebody has paused stays so. The guest goes on whatever fails,
// and when ctx ends: whoever has asked may go away.
func (in *instance) whilePaused(ctx context.Context, f func() error) (time.Duration, error) {
	if in.vm.Record().Status == vm.StatusPaused {
		return 0, f()
	}
	began := time.Now()
	ctx = context.WithoutCancel(ctx)
	err := in.machine.Pause(ctx)
	if err == nil {
		err = f()
	}
	in.unpause(ctx)
	return time.Since(began), err
}

// resumePause is the time between two tries to let a guest go on.
const resumePause = time.Second

// unpause lets a guest go on that stands still, or may: a pause that has failed may
// have come through. Nobody else would try again, so this does until it has worked,
// the VMM is gone, or somebody waits to end the VM, who kills a guest that does not
// go on.
func (in *instance) unpause(ctx context.Context) {
	for {
		err := in.machine.Resume(ctx)
		if err == nil || in.endAsked(ctx) {
			return
		}
		in.Verbose("the guest is to go on, and does not: " + firstLine(err))
		select {
		case <-in.machine.Done():
			return
		case <-time.After(resumePause):
		}
	}
}

// manifest says what the VM is, as far as whoever is started from it must know.
func (in *instance) manifest(o captureOptions) snapshot.Manifest {
	r := in.vm.Record()
	m := snapshot.Manifest{
		Key: o.key, Source: snapshot.Source{ID: r.ID, Name: r.Name, Started: r.Restarts},
		Needs: in.needs(), Spec: r.Spec, Process: r.Resolved.Process, Command: r.Resolved.Command,
		Link: r.Resolved.Link, DeviceMTU: in.deviceMTU, DeviceTap: in.deviceTap, Guest: o.guest,
	}
	m.Spec.Network.Publish = in.openPorts() // those of the host that were chosen, too
	if in.from != nil {
		m.Source.Snapshot = in.from.Manifest.ID
	}
	for i, d := range in.disks() {
		shared := in.shared(i)
		m.Disks = append(m.Disks, snapshot.Disk{ID: d.ID, Name: d.Path, ReadOnly: d.ReadOnly, Path: shared.path, Contents: shared.contents})
	}
	return m
}

// needs is what this VM runs with, as a snapshot of it would need it again.
func (in *instance) needs() snapshot.Needs {
	n := in.host()
	n.CPUs, n.MemoryMiB, n.HugePages = in.Spec.CPUs, in.Spec.MemoryMiB, in.Spec.HugePages
	n.KernelID, n.RootID = in.artifacts.KernelID, in.artifacts.RootID
	n.Image, n.ImageDigest = in.Spec.Image, in.image.Digest
	return n
}

// host is what a snapshot depends on of this host and the driver.
func (l *life) host() snapshot.Needs {
	r := &l.timer.resolved
	n := snapshot.Needs{Arch: runtime.GOARCH, Driver: r.Driver, VMMVersion: r.VMMVersion, Agent: agentapi.Version, Accelerated: r.Accelerated}
	if r.Accelerated {
		// An emulator's CPU is its own. A CPU that cannot be told is no other's.
		n.CPU, _ = snapshot.HostCPU()
	}
	return n
}

// snapshotSize is what a snapshot takes of the disk, at most, bytes: memory, and
// the disks that the VM writes to.
func (in *instance) snapshotSize() int64 {
	var parent int64
	if in.from != nil {
		parent = allocated(in.from.Memory())
	}
	need := memoryRoom(in.machine, int64(in.Spec.MemoryMiB)<<20, parent)
	for _, d := range in.disks() {
		if d.ReadOnly {
			continue
		}
		// A volume's disk lies elsewhere.
		if path, err := filepath.EvalSymlinks(filepath.Join(string(in.vm.Dir()), d.Path)); err == nil {
			need += allocated(path)
		}
	}
	return need
}

// memoryRoom is what a guest's memory takes of the disk, bytes, until it is
// finished: all of it, or what the VMM has of it in its own, and what of the
// snapshot it was started from (its parent) it has not touched yet.
func memoryRoom(m vmm.Machine, memory, parent int64) int64 {
	if w, ok := m.(vmm.WholeWriter); ok && w.WritesWhole() {
		return memory
	}
	st, err := proc.Read(m.PID())
	if err != nil {
		return memory
	}
	return min(memory, st.Resident+parent)
}

// allocated is what a file takes of the disk, bytes; 0 for one that cannot be
// looked at.
func allocated(path string) int64 {
	_, n, err := usage.File(path)
	if err != nil {
		return 0
	}
	return n
}
