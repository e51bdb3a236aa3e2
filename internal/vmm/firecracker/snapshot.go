package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
)

const (
	// snapshotTimeout bounds what Firecracker takes to write a snapshot. It
	// writes all of the guest's memory, and waits until that is on the disk.
	snapshotTimeout = 30 * time.Minute

	// Before Firecracker 1.15, snapshots of changed pages were wrong for x86_64
	// guests with memory above the hole for devices, which is at 3 GiB.
	diffMemory = 3 << 30
)

// base is the memory that the next snapshot is a difference to: that of the one
// that was taken or loaded last, since which Firecracker remembers what was
// written. One may be taken while others are not whole yet.
type base struct {
	mu sync.Mutex
	// tracked: Firecracker remembers what is written.
	tracked bool
	// memory is that of the last snapshot; nil: it is not whole yet, or nothing
	// is tracked, and the next one is a full one.
	memory *os.File
	// last is the file of the memory of the snapshot that was taken last.
	last string
	// parents are what snapshots of changed pages are differences to, by the files
	// of their memory, until FinishSnapshot completes them.
	parents map[string]*os.File
}

// track begins with a snapshot that was loaded.
func (b *base) track(f *os.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
	b.tracked, b.memory = true, f
}

// forget gives up what the next snapshot would be a difference to. Those that
// were taken can still be completed, after the end of the machine, too.
func (b *base) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
	b.tracked = false
}

// drop closes the last snapshot's memory.
func (b *base) drop() {
	if b.memory != nil {
		_ = b.memory.Close()
	}
	b.memory = nil
}

// next begins a snapshot, and reports whether it is one of changed pages. From
// then on it is the last one.
func (b *base) next(memory *os.File) (diff bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.tracked {
		return false
	}
	if diff = b.memory != nil && tellsPages(memory); diff {
		if b.parents == nil {
			b.parents = map[string]*os.File{}
		}
		b.parents[memory.Name()], b.memory = b.memory, nil
	}
	b.drop()
	b.last = memory.Name()
	return diff
}

// lost is for a snapshot that there is none of: if it was the last one, nobody
// knows any more since when pages have changed.
func (b *base) lost(path string) {
	if parent := b.parent(path); parent != nil {
		_ = parent.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == path {
		b.drop()
		b.tracked = false
	}
}

// parent is what a snapshot is a difference to, which is the caller's from then
// on; nil: it is a full one.
func (b *base) parent(path string) *os.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.parents[path]
	delete(b.parents, path)
	return f
}

// Snapshot implements vmm.Snapshotter.
func (m *machine) Snapshot(ctx context.Context, to vmm.SnapshotFiles) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save the machine: %w", err)
		}
	}()
	memory, err := memimage.Create(to.Memory, m.memory)
	if err != nil {
		return err
	}
	defer func() { err = memimage.CloseOrRemove(memory, err) }()
	state, err := os.OpenFile(to.State, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = memimage.CloseOrRemove(state, err) }()

	create := snapshotCreate{Type: "Full", State: to.State, Memory: to.Memory}
	if m.base.next(memory) {
		create.Type = "Diff"
	}
	r := put("/snapshot/create", create)
	r.limit = snapshotTimeout
	m.saved.Store(true)
	m.agent.Saving() // it hangs up all that goes over vsock
	if err := m.call(ctx, r); err != nil {
		m.base.lost(to.Memory)
		return err
	}
	return nil
}

// WritesWhole implements vmm.WholeWriter.
func (m *machine) WritesWhole() bool {
	m.base.mu.Lock()
	defer m.base.mu.Unlock()
	return m.base.memory == nil || !tellsPages(m.base.memory)
}

// tellsPages reports whether the holes of a file are as small as a page.
func tellsPages(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Bsize <= memimage.Page
}

// FinishSnapshot implements vmm.Snapshotter.
func (m *machine) FinishSnapshot(ctx context.Context, to vmm.SnapshotFiles) (err error) {
	defer func() {
		if err != nil {
			m.base.lost(to.Memory)
			_ = os.Remove(to.State)
			err = fmt.Errorf("complete the machine's memory: %w", err)
		}
	}()
	f, err := os.OpenFile(to.Memory, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = memimage.CloseOrRemove(f, err) }()
	st, err := f.Stat()
	if err == nil && st.Size() != m.memory {
		err = fmt.Errorf("%w: it has %d bytes, the guest has %d", errMemorySize, st.Size(), m.memory)
	}
	if err != nil {
		return err
	}
	if err := m.base.complete(ctx, f, m.memory); err != nil {
		return err
	}
	return memimage.PunchZeros(ctx, f, m.memory)
}

// DropSnapshot implements vmm.Snapshotter.
func (m *machine) DropSnapshot(to vmm.SnapshotFiles) { m.base.lost(to.Memory) }

var errMemorySize = errors.New("the memory that Firecracker has saved is not whole")

// complete copies into a snapshot of changed pages what has not changed, and
// makes it the next one's base, unless another one was taken since.
func (b *base) complete(ctx context.Context, f *os.File, size int64) error {
	if parent := b.parent(f.Name()); parent != nil {
		defer func() { _ = parent.Close() }()
		changed, err := memimage.Extents(f, size)
		if err != nil {
			return err
		}
		all, err := memimage.Extents(parent, size)
		if err != nil {
			return err
		}
		if err := memimage.Copy(ctx, f, parent, memimage.Without(all, changed)); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.tracked || b.last != f.Name() {
		return nil
	}
	whole, err := os.Open(f.Name())
	if err != nil {
		return err
	}
	b.memory = whole
	return nil
}

// canDiff reports whether this Firecracker's snapshots of changed pages are
// right for a guest with so much memory.
func canDiff(v release, memory int64, arch string) bool {
	return arch != "amd64" || memory <= diffMemory || !v.before(15)
}

// isOfHost reports whether Firecracker's error may go away, as with a tap that is
// in use: those of the operating system have their number in the message.
func isOfHost(err error) bool { return strings.Contains(err.Error(), "os error") }

// Restore implements vmm.Restorer.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, from vmm.RestoreFrom) (vmm.Machine, error) {
	if err := checkRestore(&cfg, &from); err != nil {
		return nil, err
	}
	end := from.Phase.Begin("spawn")
	m, err := d.spawn(ctx, &cfg)
	if err != nil {
		end()
		return nil, err
	}
	var v release
	err = m.call(ctx, get("/version", &v)) // waits until Firecracker answers
	end()
	if err == nil {
		end = from.Phase.Begin("load")
		err = m.load(ctx, &cfg, from, v)
		end()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore the machine: %w", err), m.Close())
	}
	return m, nil
}

// checkRestore refuses what cannot be restored before anything is started.
func checkRestore(cfg *vmm.Config, from *vmm.RestoreFrom) error {
	st, err := os.Stat(from.State)
	if err != nil {
		return fmt.Errorf("open a machine's state: %w", err)
	}
	if st.Size() == 0 {
		return fmt.Errorf("%w: the state %s is empty", vmm.ErrIncompatible, from.State)
	}
	if from.PageServer != "" {
		return nil
	}
	if cfg.HugePages {
		return fmt.Errorf("%w: Firecracker takes memory with huge pages from a page server only; use --memory server", vmm.ErrUnsupported)
	}
	return vmm.CheckMemory(from.Memory, cfg.MemoryMiB)
}

// load has Firecracker load a snapshot, and makes sure that it is of a machine
// like cfg.
func (m *machine) load(ctx context.Context, cfg *vmm.Config, from vmm.RestoreFrom, v release) error {
	l := snapshotLoad{State: from.State, Memory: memoryBackend{"File", from.Memory}}
	if from.PageServer != "" {
		l.Memory = memoryBackend{"Uffd", from.PageServer}
	}
	if from.TrackDirty && from.Memory != "" && canDiff(v, m.memory, runtime.GOARCH) {
		f, err := os.Open(from.Memory)
		if err != nil {
			return fmt.Errorf("open a snapshot's memory: %w", err)
		}
		m.base.track(f)
		l.TrackDirty, l.EnableDiffs = !v.before(14), v.before(14)
	}
	if err := m.call(ctx, put("/snapshot/load", l)); err != nil {
		if errors.Is(err, errAPI) && !isOfHost(err) {
			err = fmt.Errorf("%w: %w", vmm.ErrIncompatible, err)
		}
		return err
	}
	var is machineConfig
	if err := m.call(ctx, get("/machine-config", &is)); err != nil {
		return err
	}
	if is.VCPUs != cfg.CPUs || is.MemoryMiB != cfg.MemoryMiB {
		return fmt.Errorf("%w: it is of a machine with %d CPUs and %d MiB, not %d and %d", vmm.ErrIncompatible, is.VCPUs, is.MemoryMiB, cfg.CPUs, cfg.MemoryMiB)
	}
	if cfg.Metadata != nil {
		return m.call(ctx, put("/mmds", cfg.Metadata))
	}
	return nil
}
