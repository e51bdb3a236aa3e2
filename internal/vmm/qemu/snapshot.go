package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
	"github.com/fcvm/fcvm/internal/vmm/tsc"
)

var (
	errRunning  = errors.New("a machine is saved while it is paused, and this one is not")
	errNotSaved = errors.New("this is no snapshot of the machine that is to be finished")
)

// Snapshot implements vmm.Snapshotter.
//
// QEMU saves the state of the devices alone by the command that it has for Xen,
// whose guests' memory is not QEMU's either; the memory is copied from where it
// lies. QEMU's migration would do for guests that were booted: it leaves shared
// memory out of its stream (x-ignore-shared). But the memory of restored ones
// is mapped privately, and a migration always puts that into the stream, page
// by page.
func (m *machine) Snapshot(ctx context.Context, to vmm.SnapshotFiles) (err error) {
	if err := m.checkPaused(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("save the machine: %w", m.cause(ctx, err))
		}
	}()
	memory, err := memimage.Create(to.Memory, m.memory.size)
	if err != nil {
		return err
	}
	defer func() { err = memimage.CloseOrRemove(memory, err) }()
	state, err := os.OpenFile(to.State, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = memimage.CloseOrRemove(state, err) }()

	// Not "live": the disks stay this machine's, which goes on with them.
	save := struct {
		File string `json:"filename"`
		Live bool   `json:"live"`
	}{to.State, false}
	if err := m.mon.execute(ctx, "xen-save-devices-state", save, nil); err != nil {
		return err
	}
	if err := sealState(state, m.mon.version, m.shape); err != nil {
		return err
	}
	saved, err := m.memory.save(ctx, m.PID(), memory)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved[to.Memory] = saved
	return m.Err()
}

// checkPaused makes sure that the guest stands still. QEMU would pause one that
// runs, and let it go on after its own part.
func (m *machine) checkPaused(ctx context.Context) error {
	var st struct {
		Status string `json:"status"`
	}
	if err := m.mon.execute(ctx, "query-status", nil, &st); err != nil {
		return m.cause(ctx, err)
	}
	if st.Status != "paused" {
		return fmt.Errorf("%w: it is %q", errRunning, st.Status)
	}
	if !m.agent.started() {
		return fmt.Errorf("save the machine: %w", errNotResumed)
	}
	return nil
}

// FinishSnapshot implements vmm.Snapshotter.
func (m *machine) FinishSnapshot(ctx context.Context, to vmm.SnapshotFiles) (err error) {
	m.mu.Lock()
	saved, ok := m.saved[to.Memory]
	delete(m.saved, to.Memory)
	m.mu.Unlock()
	if !ok { // and nobody knows what is missing in the file, if there is one
		return fmt.Errorf("%w: %s", errNotSaved, to.Memory)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(to.State)
			err = fmt.Errorf("complete the machine's memory: %w", err)
		}
	}()
	f, err := os.OpenFile(to.Memory, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = memimage.CloseOrRemove(f, err) }()
	return m.memory.complete(ctx, f, saved)
}

// DropSnapshot implements vmm.Snapshotter.
func (m *machine) DropSnapshot(to vmm.SnapshotFiles) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.saved, to.Memory)
}

// Restore implements vmm.Restorer. RestoreFrom.TrackDirty changes nothing: the
// kernel knows without it what a restored guest has written.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, from vmm.RestoreFrom) (vmm.Machine, error) {
	if err := d.check(&cfg); err != nil {
		return nil, err
	}
	if from.PageServer != "" {
		return nil, fmt.Errorf("%w: QEMU takes no memory from a server; use --memory file", vmm.ErrUnsupported)
	}
	h := host{kvm: d.kvm().RunsGuest}
	state, info, err := openState(from.State, shapeOf(&cfg, h))
	if err != nil {
		return nil, err
	}
	defer func() { _ = state.Close() }()
	if err := info.Shape.checkTime(tsc.KHz); err != nil {
		return nil, err
	}
	h.tscKHz, h.restore = info.Shape.TSCKHz, &info.QEMU
	memory, err := openMemory(from.Memory, cfg.MemoryMiB)
	if err != nil {
		return nil, err
	}
	end := from.Phase.Begin("spawn")
	m, err := d.spawn(ctx, &cfg, h, memory, state)
	end()
	if err != nil {
		return nil, err
	}
	end = from.Phase.Begin("load")
	err = m.load(ctx, info)
	end()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore the machine: %w", err), m.Close())
	}
	return m, nil
}

// openState opens a state that is to be loaded into a machine of this shape.
func openState(path string, s shape) (*os.File, stateInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stateInfo{}, fmt.Errorf("open a machine's state: %w", err)
	}
	st, err := f.Stat()
	var info stateInfo
	if err == nil {
		info, err = readState(f, st.Size())
	}
	if err != nil {
		err = fmt.Errorf("read %s: %w", path, err)
	} else if d := info.Shape.differs(s); d != "" {
		err = fmt.Errorf("%w: it has another machine's %s", vmm.ErrIncompatible, d)
	}
	if err != nil {
		_ = f.Close()
		return nil, info, err
	}
	return f, info, nil
}

// load has QEMU load the state from the descriptor that it inherited.
func (m *machine) load(ctx context.Context, info stateInfo) error {
	if !m.mon.version.loads(info.QEMU) {
		return fmt.Errorf("%w: it was saved by QEMU %s, this is %s", vmm.ErrIncompatible, info.QEMU, m.mon.version)
	}
	uri := struct {
		URI string `json:"uri"`
	}{fmt.Sprintf("fd:%d", fdChannel)}
	if err := m.mon.execute(ctx, "migrate-incoming", uri, nil); err != nil {
		return m.cause(ctx, err)
	}
	const pause = 500 * time.Microsecond
	for {
		var st struct {
			Status string `json:"status"`
		}
		if err := m.mon.execute(ctx, "query-status", nil, &st); err != nil {
			// QEMU ends when it cannot load a state, and has said why.
			if err = m.cause(ctx, err); errors.Is(err, vmm.ErrExited) && ctx.Err() == nil {
				err = fmt.Errorf("%w: %w", vmm.ErrIncompatible, err)
			}
			return err
		}
		if st.Status != "inmigrate" {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
