package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fcvm/fcvm/internal/agentclient"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// The warm start: the first run of an image leaves a snapshot of its guest, taken
// when that was up and before it was told what to run. The next one of the same
// shape starts from there. It is a cache: what cannot be used is forgotten, and
// the guest boots.

// warmVersion changes when a guest that is up is not what it was.
const warmVersion = 1

// findWarm looks for a guest that was saved before its container was started.
func (in *instance) findWarm(ctx context.Context) error {
	if !in.warmable() {
		return nil
	}
	key, err := in.makeWarmKey()
	if err != nil {
		return err
	}
	in.warmKey = key
	snap, ok := in.Snapshots.HoldKey(key)
	if !ok {
		return nil
	}
	err = snap.Verify(ctx, false)
	if ctx.Err() != nil { // which says nothing of the snapshot
		snap.Release()
		return context.Cause(ctx)
	}
	if err != nil {
		in.forget(snap, err)
		return nil
	}
	in.from = snap
	in.undo.add("release the snapshot", func(context.Context) error { snap.Release(); return nil })
	return in.vm.Update(func(r *vm.Record) error {
		r.Resolved.Snapshot = lineage(&snap.Manifest)
		return nil
	})
}

// warmable reports whether the guest's state before its container is the same
// for all runs of its shape, and can be kept.
func (in *instance) warmable() bool {
	_, restores := in.driver.(vmm.Restorer)
	// A guest on huge pages is given its memory by a server alone, and QEMU takes
	// none back by a balloon that it shares with a snapshot.
	return !in.NoCache && restores && !in.Spec.HugePages && in.Spec.BalloonMiB == 0 && !in.diskInMemory() &&
		len(in.volumes) == 0 // whose disks are not the same
}

// makeWarmKey is a digest of all that a guest depends on that has its root, and
// no plan yet.
func (in *instance) makeWarmKey() (string, error) {
	link := ""
	if n := in.net.Net(); n != nil {
		link = fmt.Sprintf("tap %t, MAC %s, MTU %d", n.Tap != "", n.MAC, n.MTU)
	}
	needs := in.needs()
	needs.Image = "" // whatever it is called: its digest counts
	b, err := json.Marshal(struct {
		Version int
		Needs   snapshot.Needs
		Initrd  string // its name tells agents apart
		Cmdline string
		Link    string
		Disks   []vmm.Disk
		Scratch int // MiB
	}{warmVersion, needs, filepath.Base(in.artifacts.Initrd), in.cmdline(), link, in.disks(), in.Spec.ScratchMiB})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// forget drops a snapshot that is of no use.
func (in *instance) forget(snap *snapshot.Snapshot, why error) {
	in.Verbose(fmt.Sprintf("not started from snapshot %s: %v", snap.Manifest.ID, firstLine(why)))
	snap.Release()
	_ = in.Snapshots.Remove(snap.Manifest.ID) // others may use it, or have removed it
}

// comeUp leads to a guest that waits for its plan: from a snapshot, or else by a
// boot, of which one is taken for the next time.
func (in *instance) comeUp(ctx context.Context) error {
	if in.from != nil {
		err := in.wakeUp(ctx)
		if err == nil || ctx.Err() != nil || in.wasKilled(err) {
			return err
		}
		if err := in.startOver(ctx, err); err != nil {
			return err
		}
	}
	if err := in.boot(ctx); err != nil {
		return err
	}
	if in.warmKey == "" {
		return nil
	}
	return in.keepWarm(ctx)
}

func (in *instance) wakeUp(ctx context.Context) error {
	if err := in.restore(ctx); err != nil {
		return err
	}
	return in.makeOwn(ctx, nil)
}

// wasKilled reports whether a start has failed because somebody has killed the
// VMM: that says nothing of the snapshot, and asks for the VM's end.
func (in *instance) wasKilled(err error) bool {
	if errors.Is(err, vmm.ErrKilled) || in.machine == nil {
		return errors.Is(err, vmm.ErrKilled)
	}
	select {
	case <-in.machine.Done():
		return in.machine.Exit().Signal == int(unix.SIGKILL)
	default:
		return false
	}
}

// startOver gives up a snapshot that could not be started.
func (in *instance) startOver(ctx context.Context, why error) error {
	snap := in.from
	in.from = nil
	in.forget(snap, why)
	if in.machine != nil {
		if err := in.machine.Close(); err != nil {
			return err
		}
	}
	if err := in.vm.Update(func(r *vm.Record) error { r.Resolved.Snapshot = vm.Lineage{}; return nil }); err != nil {
		return err
	}
	return in.layOutDisks(ctx)
}

// keepWarm takes a snapshot of a guest that has come up. The guest waits only
// until it is taken; what remains to be done is done beside it. That there is no
// room, or anything else that fails, costs only the next one's time.
func (in *instance) keepWarm(ctx context.Context) error {
	defer in.timer.phase("keep warm")()
	wait, cancel := untilDone(ctx, in.machine, startTimeout)
	defer cancel()
	st, err := in.agent.WaitUp(wait)
	if err != nil {
		return in.bootError(ctx, startTimeout, err)
	}
	if st.HavePlan { // not that of the next run
		return fmt.Errorf("keep the guest for the next run: %w: it has a plan that nobody has sent", agentclient.ErrAgent)
	}
	c, err := in.newCapture(captureOptions{key: in.warmKey, guest: snapshot.GuestUp})
	if err == nil {
		// Whoever ends the start does not wait for what the VMM writes.
		stop := context.AfterFunc(ctx, func() { _ = in.machine.Kill(context.WithoutCancel(ctx)) })
		err = c.freeze(ctx)
		stop()
		if err == nil && ctx.Err() != nil {
			err = c.failed(context.Cause(ctx))
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		in.Verbose("no snapshot for the next run: " + firstLine(err))
		return nil
	}
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		snap, err := c.finish(context.WithoutCancel(ctx))
		if err != nil {
			in.Verbose("no snapshot for the next run: " + firstLine(err))
			return
		}
		snap.Release()
		in.Snapshots.TrimAutomatic()
	}()
	in.undo.add("keep the guest for the next run", func(ctx context.Context) error {
		select {
		case <-kept:
			return nil
		case <-ctx.Done():
			in.Verbose("no snapshot for the next run: it takes too long")
			return nil
		}
	})
	return nil
}
