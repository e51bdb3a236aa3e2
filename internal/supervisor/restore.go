package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// ErrRestore: a snapshot could not be made a VM of its own.
var ErrRestore = errors.New("the snapshot could not be started")

const (
	entropyBytes = 64 // that a clone's generator gets
	epochBytes   = 16
)

// Clone says how a VM is started from a snapshot.
type Clone struct {
	Snapshot *snapshot.Snapshot // held by the caller until the VM has ended
	Memory   Memory             // where it gets its memory from; empty: from the file
	Env      []string           // KEY=VALUE: for commands that are run in it
	// TrackDirty has the VMM remember what is written (vmm.RestoreFrom).
	TrackDirty bool
	// Exec is run when the VM is ready, in place of following its container;
	// the VM ends with it. Empty: the container is followed.
	Exec []string
}

// findOriginal finds what the snapshot needs, and refuses to start with
// anything else.
func (l *life) findOriginal(ctx context.Context) error {
	m := &l.Clone.Snapshot.Manifest
	if err := m.Needs.Check("snapshot "+m.Title(), l.host()); err != nil {
		return err
	}
	if err := errors.Join(l.checkMemory(ctx), m.CheckDisks()); err != nil {
		return err
	}
	a, err := l.Setup.ArtifactsOf(m.Needs.KernelID, m.Needs.RootID)
	if err != nil {
		return fmt.Errorf("%w: snapshot %s: %w", snapshot.ErrMismatch, m.Title(), err)
	}
	a.Initrd = l.Clone.Snapshot.Path(paths.InitrdName)
	l.artifacts = a
	return checkShares(l.Spec.Mounts)
}

// originalImage is the very image that the snapshot's container runs.
func (l *life) originalImage() (image.Image, error) {
	m := &l.Clone.Snapshot.Manifest
	img, err := l.Images.ByDigest(m.Needs.ImageDigest)
	if errors.Is(err, image.ErrNotFound) {
		return img, fmt.Errorf("%w: snapshot %s needs the image %s (%s), which is not in the cache; get it with: fcvm image pull %s",
			snapshot.ErrMismatch, m.Title(), m.Needs.Image, m.Needs.ImageDigest, m.Needs.Image)
	}
	return img, err
}

// copyDisks gives the VM its own copy of each disk that can be written to.
func (in *instance) copyDisks(ctx context.Context) error {
	dir := string(in.vm.Dir())
	if err := checkRoom(dir, in.from); err != nil {
		return err
	}
	for _, d := range in.from.Manifest.Disks {
		var err error
		switch {
		case !d.ReadOnly:
			err = fresh(dir, d.Name, func(path string) error { return rootfs.CopySparse(ctx, path, in.from.Path(d.Name)) })
		case d.Path != "":
			err = fresh(dir, d.Name, func(path string) error { return os.Symlink(d.Path, path) })
		}
		if err == nil && !d.ReadOnly {
			err = os.Chmod(filepath.Join(dir, d.Name), 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// restore loads the snapshot into a VMM and lets the guest go on.
func (in *instance) restore(ctx context.Context) error {
	r, ok := in.driver.(vmm.Restorer)
	if !ok {
		return fmt.Errorf("%w: snapshots with %s", vmm.ErrUnsupported, in.driver.Name())
	}
	in.deviceMTU, in.deviceTap = in.from.Manifest.DeviceMTU, in.from.Manifest.DeviceTap
	task := in.Progress.Task("start from snapshot "+in.from.Manifest.Title(), 0)
	from, err := in.restoreFrom(ctx)
	if err == nil {
		err = in.load(ctx, r, from)
	}
	if err == nil {
		err = in.goOn(ctx)
	}
	task.Done(err)
	return err
}

// load has the VMM load the snapshot.
func (in *instance) load(ctx context.Context, r vmm.Restorer, from vmm.RestoreFrom) error {
	ctx, cancel := in.withPages(ctx)
	defer cancel()
	err := in.launch(ctx, func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
		if cfg.Net != nil {
			n := *cfg.Net
			n.MTU = in.deviceMTU // the device is as it was
			cfg.Net = &n
		}
		return r.Restore(ctx, cfg, from)
	})
	if err != nil {
		return driverError(ctx, in.driver, in.pagesError(err))
	}
	return in.watchPages()
}

func (in *instance) goOn(ctx context.Context) error {
	defer in.timer.phase("resume")()
	if err := in.machine.Resume(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrRestore, err)
	}
	return nil
}

// takeOver has the guest become a machine of its own, and joins the streams of the
// container meanwhile, which runs already. What they carry is read when all else
// is done.
func (in *instance) takeOver(ctx context.Context) error {
	answers := newLatch()
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return in.makeOwn(ctx, func() { answers.set(nil) }) })
	both.Go(func() error {
		if err := answers.wait(ctx); err != nil {
			return err
		}
		wait, cancel := untilDone(ctx, in.machine, startTimeout)
		defer cancel()
		if err := in.attach(ctx, wait); err != nil {
			return fmt.Errorf("join the container: %w", err)
		}
		return nil
	})
	return both.Wait()
}

// makeOwn has the guest become a machine of its own: until it has confirmed
// that, it is not ready, and the clone fails. answers, if any, is called when it
// has answered for the first time.
func (in *instance) makeOwn(ctx context.Context, answers func()) error {
	began, answered := time.Now(), make(chan time.Time, 1)
	defer func() {
		select {
		case at := <-answered:
			in.timer.add("agent", at.Sub(began))
			in.timer.add("identity", time.Since(at))
		default:
			in.timer.add("agent", time.Since(began))
		}
	}()
	wait, cancel := untilDone(ctx, in.machine, startTimeout)
	defer cancel()
	req, err := in.restoreRequest()
	if err != nil {
		return err
	}
	got, err := in.agent.Restore(wait, req, func() {
		answered <- time.Now()
		if answers != nil {
			answers()
		}
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRestore, in.guestError(ctx, err))
	}
	in.Verbose(fmt.Sprintf("the guest is its own, after %s of its time and %d looks at its clock: its clock is off by %s at most, %d TCP connections of the original were reset",
		got.Took.Round(time.Millisecond), got.Asked, got.ClockError.Round(time.Millisecond), got.Reset))
	return nil
}

func (in *instance) restoreRequest() (agentapi.RestoreRequest, error) {
	entropy, epoch := make([]byte, entropyBytes), make([]byte, epochBytes)
	for _, b := range [][]byte{entropy, epoch} {
		_, _ = rand.Read(b) // never fails (crypto/rand)
	}
	hosts, err := network.ParseHosts(in.Spec.Network.AddHosts)
	if err != nil {
		return agentapi.RestoreRequest{}, err
	}
	rec := in.vm.Record()
	req := agentapi.RestoreRequest{
		ClockSync: agentapi.ClockSync{Epoch: hex.EncodeToString(epoch)}, Entropy: entropy,
		Hostname: hostname(&rec), MachineID: machineID(), Network: in.guestNetwork(), Hosts: hosts,
	}
	if in.Clone != nil {
		req.Env = in.Clone.Env
	}
	return req, nil
}

// machineID is a new one, as systemd makes them: machine-id(5), a random UUID
// of version 4 without its dashes.
func machineID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return hex.EncodeToString(b[:])
}

// runHooks runs what is to be done in a clone before it counts as ready: what
// no agent can know of, as keys of programs that have been loaded already.
func (in *instance) runHooks(ctx context.Context) error {
	if len(in.Spec.OnRestore) == 0 {
		return nil
	}
	defer in.timer.phase("on-restore")()
	wait, cancel := untilDone(ctx, in.machine, startTimeout)
	defer cancel()
	for _, hook := range in.Spec.OnRestore {
		code, output, err := in.exec(wait, []string{"/bin/sh", "-c", hook})
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			err = fmt.Errorf("it did not end within %s", startTimeout)
		case err != nil:
			err = in.guestError(ctx, err)
		case code != 0:
			err = fmt.Errorf("it ended with code %d: %s", code, output)
		}
		if err != nil {
			return fmt.Errorf("%w: --on-restore %q: %w", ErrRestore, hook, err)
		}
	}
	return nil
}

func (in *instance) recordRunning(context.Context) error {
	err := in.vm.Update(func(r *vm.Record) error {
		r.Phases = in.timer.phases
		return r.Move(vm.StatusRunning, "", time.Now())
	})
	if err != nil {
		return err
	}
	in.vm.Tell(events.Started, "")
	return nil
}

// OpenInput is the stdin of a container that nobody writes to: it does not end.
type OpenInput struct{}

// Read never returns.
func (OpenInput) Read([]byte) (int, error) { select {} }

func lineage(m *snapshot.Manifest) vm.Lineage {
	return vm.Lineage{ID: m.ID, Name: m.Name, Source: m.Source.Name, SourceID: m.Source.ID}
}
