package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// endTimeout bounds what is done after a VM's end: a backend may not close.
const endTimeout = 20 * time.Second

// Pauses between a container's end and its restart: the first, and the longest.
const (
	restartPause    = 100 * time.Millisecond
	maxRestartPause = time.Minute
	// A container that ran for so long has not failed at once: the pause is
	// the first again.
	restartSettled = 10 * time.Second
)

// life is one run under way, over all its restarts. What one step finds, the
// later ones use.
type life struct {
	Deps
	Options

	vm        *store.VM
	timer     stopwatch
	undo      undoStack
	signals   *signals
	input     *input
	driver    vmm.Driver
	artifacts *setup.Artifacts
	image     image.Image
	volumes   []volumeDisk // of the mounts that are disks, in their order
	ports     []string     // as for -p; after the first start with the host ports that were chosen

	ready    *latch       // the readiness gate is open, or never will be
	over     *latch       // the VM has ended for good
	gateLeft atomic.Int64 // how long the gate may stay closed, ns; 0: it was open since, or nobody waits yet
	wasReady bool         // the gate was open once
	saved    bool         // and the snapshot that was to be taken then is taken
	trouble  []error      // in taking down

	publishing sync.Mutex // ports are opened or closed
	capturing  sync.Mutex // a snapshot is taken, or the VM is paused or resumed

	mu       sync.Mutex
	current  *instance // that boots or runs; nil: none
	ran      bool      // the container of this start was running
	finished bool      // and has ended: what asks for the end comes too late
	stopping bool      // somebody asked for the end: no restart
	ended    control.Ended
	// What the record could not take yet.
	unwritten []func(*vm.Record)
}

func run(ctx context.Context, d Deps, o Options) (Result, error) {
	if o.Progress == nil {
		o.Progress = progress.Discard
	}
	if o.Verbose == nil {
		o.Verbose = func(string) {}
	}
	if err := o.Spec.Validate(); err != nil {
		return Result{}, err
	}
	l := &life{
		Deps: d, Options: o, input: newInput(o.Stdio), ports: o.Spec.Network.Publish, ready: newLatch(), over: newLatch(),
	}
	ctx, l.signals = watchSignals(ctx, o.Signals)
	defer l.signals.stop()

	code, err := l.live(ctx)
	return l.end(ctx, code, err)
}

// live goes from nothing to the end of the container, and through its restarts.
func (l *life) live(ctx context.Context) (int, error) {
	for _, step := range []func(context.Context) error{
		l.checkSnapshot, l.chooseDriver, l.takeArtifacts, l.serveControl, l.getImage, l.takeVolumes,
	} {
		if err := step(ctx); err != nil {
			return 0, err
		}
	}
	pause := restartPause
	for {
		began := time.Now()
		code, err := l.runInstance(ctx)
		seen, why := code, fmt.Sprintf("the container ended with code %d", code)
		if l.lost(err) {
			seen, why = exitLost, "the VM was lost: "+firstLine(err)
		} else if err != nil {
			return code, err
		}
		if l.endAsked(ctx) || !l.Spec.Restart.Again(seen, l.vm.Record().Restarts) {
			return code, err
		}
		if time.Since(began) > restartSettled {
			pause = restartPause
		}
		if err := l.pauseBeforeRestart(ctx, why, pause); err != nil {
			return code, err
		}
		if l.endAsked(ctx) {
			return code, err
		}
		pause = min(2*pause, maxRestartPause)
	}
}

// exitLost is the exit code of a container whose VM did not live to see its end,
// as the restart policy sees it: that of a program that fcvm could not run.
const exitLost = 125

// lost reports whether a VM has ended under a container that was running: its VMM
// was killed, its guest crashed, its network went away.
func (l *life) lost(err error) bool {
	return l.ran && (errors.Is(err, ErrGuest) || errors.Is(err, errNetworkLost))
}

// endAsked reports whether somebody has asked for the end of the VM: it is not to
// be started again.
func (l *life) endAsked(ctx context.Context) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopping || l.signals.endAsked() || ctx.Err() != nil
}

func (l *life) pauseBeforeRestart(ctx context.Context, why string, pause time.Duration) error {
	l.timer.phases = nil // those of the first start would be added to
	l.vm.Tell(events.Stopped, why+", and is started again")
	err := l.vm.Update(func(r *vm.Record) error {
		r.Restarts++
		r.Ready, r.Health = false, ""
		return r.Move(vm.StatusStarting, "restart after "+why, time.Now())
	})
	if err != nil {
		return err
	}
	l.renewReady()
	select {
	case <-ctx.Done(): // that is the end
		return nil
	case <-time.After(pause):
		return nil
	}
}

// renewReady has those who ask from now on wait for the next start.
func (l *life) renewReady() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.ready.done:
		l.ready = newLatch()
	default: // some wait already
	}
}

// readiness is known when the VM is ready, or never will be.
func (l *life) readiness() *latch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

// setReady lets those go on who wait for the VM to get ready.
func (l *life) setReady(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready.set(err)
}

// runInstance boots the VM once and follows its container to the end.
func (l *life) runInstance(ctx context.Context) (code int, err error) {
	l.ran, l.finished = false, false
	in := &instance{life: l, gone: newLatch(), failure: newLatch(), logSeen: newLatch()}
	if l.Clone != nil {
		in.from = l.Clone.Snapshot
	}
	l.setCurrent(in)
	defer func() {
		l.setCurrent(nil)
		in.shutDown(context.WithoutCancel(ctx), err)
		l.takeDown(ctx, &in.undo)
	}()
	for _, step := range in.steps() {
		if err := step(ctx); err != nil {
			return 0, err
		}
	}
	if in.Clone != nil && len(in.Clone.Exec) > 0 {
		return in.runCommand(ctx)
	}
	return in.follow(ctx)
}

// steps lead to a container that runs, in this order.
func (in *instance) steps() []func(context.Context) error {
	if in.Clone != nil {
		return []func(context.Context) error{
			in.openNetwork, in.layOutDisks, in.openGroup, in.restore, in.takeOver, in.serveShares, in.runHooks, in.recordRunning,
		}
	}
	return []func(context.Context) error{
		in.openNetwork, in.findWarm, in.layOutDisks, in.openGroup, in.comeUp, in.getReady, in.serveShares, in.inflate, in.startContainer,
	}
}

// checkSnapshot refuses a snapshot that cannot be taken, or started from, before
// anything is made for it.
func (l *life) checkSnapshot(ctx context.Context) error {
	if l.Clone != nil {
		return l.Clone.Snapshot.Check(ctx)
	}
	return l.Snapshots.CheckFree(l.SaveSnapshot)
}

// takeDown undoes what was made. What fails there is said, but changes nothing in
// how the container ended, and keeps nobody from starting it again.
func (l *life) takeDown(ctx context.Context, undo *undoStack) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := undo.run(ctx); err != nil {
		l.trouble = append(l.trouble, err)
	}
}

func (l *life) setCurrent(in *instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = in
}

// chooseDriver finds the VMM that the spec asks for, or the first that runs here.
func (l *life) chooseDriver(ctx context.Context) error {
	ask := probe
	if l.Clone != nil { // its driver has run here, or on a host like this one
		ask = look
	}
	d, a, err := choose(ctx, l.Drivers, l.Spec.Driver, ask)
	if err != nil {
		return err
	}
	l.driver = d
	l.Verbose(fmt.Sprintf("driver %s: %s", d.Name(), a.Reason))
	l.timer.resolved.Driver, l.timer.resolved.DriverReason = d.Name(), a.Reason
	l.timer.resolved.VMMVersion, l.timer.resolved.Accelerated = a.Version, a.Accelerated
	return nil
}

// takeArtifacts finds what setup has installed, and records that it is used
// before anybody can remove it.
func (l *life) takeArtifacts(ctx context.Context) error {
	release, err := l.Setup.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.findArtifacts(ctx); err != nil {
		return err
	}
	return l.createRecord(ctx)
}

func (l *life) findArtifacts(ctx context.Context) error {
	if l.Clone != nil {
		return l.findOriginal(ctx)
	}
	a, err := l.Setup.Artifacts(ctx)
	if err != nil {
		return err
	}
	l.artifacts = a
	l.Verbose(fmt.Sprintf("kernel %s, guest root %s", a.KernelVersion, a.RootID))
	return nil
}

// createRecord takes the name before anything slow is done for it.
func (l *life) createRecord(context.Context) error {
	v, err := l.Store.Create(l.Name, l.Spec)
	if err != nil {
		return err
	}
	l.vm = v
	l.Verbose(fmt.Sprintf("VM %s (%s) in %s", v.Record().Name, v.Record().ID, v.Dir()))
	l.vm.Tell(events.Created, "")
	return v.Update(func(r *vm.Record) error {
		r.Resolved = l.timer.resolved
		r.Resolved.KernelID, r.Resolved.RootID = l.artifacts.KernelID, l.artifacts.RootID
		if l.Clone != nil {
			r.Resolved.Snapshot = lineage(&l.Clone.Snapshot.Manifest)
		}
		return r.Move(vm.StatusStarting, "", time.Now())
	})
}

// serveControl lets other commands reach this VM from its first moment on.
func (l *life) serveControl(context.Context) error {
	path, err := l.Store.Layout().ControlSocket(l.vm.Record().ID)
	if err != nil {
		return err
	}
	s, err := control.Listen(path, (*commands)(l))
	if err != nil {
		return err
	}
	l.undo.add("close the control socket", s.Close)
	return nil
}

func (l *life) getImage(ctx context.Context) error {
	defer l.timer.phase("image")()
	img, err := l.findImage(ctx)
	if err != nil {
		return err
	}
	l.image = img
	l.undo.add("release the image", func(context.Context) error { l.image.Release(); return nil })
	args := command(&l.Spec.Container, &img.Config)
	if len(args) == 0 {
		return fmt.Errorf("%w: give one after the image: fcvm run %s COMMAND", ErrNoCommand, l.Spec.Image)
	}
	l.Verbose(fmt.Sprintf("image %s (%s), command %q", img.Digest, cachedText(img.Cached), args))
	return l.vm.Update(func(r *vm.Record) error {
		r.Resolved.ImageDigest, r.Resolved.Command, r.Resolved.Process = img.Digest, args, l.resolveProcess()
		return nil
	})
}

func (l *life) findImage(ctx context.Context) (image.Image, error) {
	if l.Clone != nil {
		return l.originalImage()
	}
	return l.Images.Ensure(ctx, l.Spec.Image, image.EnsureOptions{Pull: l.Pull, Platform: l.Platform, Access: l.Access, Progress: l.Progress})
}

func cachedText(cached bool) string {
	if cached {
		return "cached"
	}
	return "converted"
}

// errUnsaved: there is no snapshot, though the container had no trouble.
var errUnsaved = errors.New("the container ended before it was ready (--wait-ready), or before that was taken")

// end writes the record's last words and lets everybody go.
func (l *life) end(ctx context.Context, code int, err error) (Result, error) {
	// A start that a signal has ended fails with whatever it was doing.
	if sig := interruption(ctx); sig != nil && !l.finished {
		err = sig
		code = sig.ExitCode()
	}
	l.setReady(errEnded)
	if l.vm == nil {
		return Result{ExitCode: code}, err
	}
	if err == nil && l.Ready != nil && !l.wasReady {
		err = &EndedEarly{Code: code, gate: l.Spec.Gate, output: lastOutput(l.vm.Dir().ContainerLog())}
	}
	if err == nil && l.SaveSnapshot != "" && !l.saved {
		l.trouble = append(l.trouble, fmt.Errorf("take the snapshot %s: %w", l.SaveSnapshot, errUnsaved))
	}
	if recErr := l.closeRecord(code, err); recErr != nil {
		l.trouble = append(l.trouble, recErr)
	}
	l.over.set(nil)
	l.takeDown(ctx, &l.undo)
	return Result{ExitCode: code, Record: l.finalRecord(), Trouble: errors.Join(l.trouble...)}, err
}
