package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// ErrIncompatible: a snapshot was made by another VMM, version or CPU, or of a
// machine of another shape, and cannot be loaded here.
var ErrIncompatible = errors.New("snapshot does not fit this VMM")

// SnapshotFiles are the two files that a VMM's snapshot consists of, absolute
// paths. Disks are not among them: whoever takes a snapshot copies them while
// the machine is paused.
type SnapshotFiles struct {
	// Memory is the guest's memory as one flat file, in the order of its
	// physical addresses, as large as the guest's memory. Pages of zeros are
	// holes. It is mapped by every clone and is never changed once it is whole.
	Memory string
	// State is that of the devices and virtual CPUs, in the VMM's own format.
	State string
}

// Snapshotter is implemented by Machines whose state can be saved.
type Snapshotter interface {
	// Snapshot saves a machine that is paused into files that do not exist
	// yet. The machine stays paused, and can be resumed whether or not the
	// snapshot has succeeded; after an error the files are gone. It neither
	// syncs the files nor waits for anything that can be done once the guest
	// runs again: FinishSnapshot does. Connections to the agent outlive it, and
	// nothing of what goes over them is lost.
	Snapshot(ctx context.Context, to SnapshotFiles) error
	// FinishSnapshot does what needs no paused machine (holes for pages of
	// zeros, a merge of changed pages into a copy of the parent's memory). The
	// files are whole only after it.
	FinishSnapshot(ctx context.Context, to SnapshotFiles) error
	// DropSnapshot gives up a snapshot, whether or not it was taken or finished: the
	// machine keeps nothing for it. The caller removes the files.
	DropSnapshot(to SnapshotFiles)
}

// WholeWriter is implemented by Snapshotters that write all of a guest's memory,
// pages of zeros as well, of which only FinishSnapshot makes holes.
type WholeWriter interface {
	// WritesWhole reports whether the next snapshot is one for which there must
	// be as much room as the guest has memory.
	WritesWhole() bool
}

// RestoreFrom says where a machine's state comes from.
type RestoreFrom struct {
	// State as Snapshotter made it, an absolute path.
	State string
	// Memory is mapped privately: pages that are not written are shared with
	// all that map the same file. Exactly one of Memory and PageServer is set.
	// The user that the VMM runs as must be allowed to write it, which nobody
	// does: QEMU before 8.2 opens it for that.
	Memory string
	// PageServer is the Unix socket of a server that fills the guest's memory
	// on demand by userfaultfd. Only for drivers whose Capabilities say so.
	PageServer string
	// TrackDirty has the VMM remember which pages are written, so that the
	// next snapshot need write only those. It costs a fault for each page.
	TrackDirty bool
	// Phase is called when a phase ("spawn", "load") begins; the function that
	// it returns is called at its end. nil: nobody listens.
	Phase Phase
}

// Phase is told that a part of a start begins; the function that it returns, that
// the part is over. nil: nobody listens.
type Phase func(name string) (done func())

// Begin says that a phase begins; end, that it is over.
func (p Phase) Begin(name string) (end func()) {
	if p == nil {
		return func() {}
	}
	return p(name)
}

// CheckMemory refuses a file that is not the memory of a machine of this size.
func CheckMemory(path string, mib int) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("open a snapshot's memory: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() != int64(mib)<<20 {
		return fmt.Errorf("%w: memory file %s has %d bytes, not %d MiB", ErrIncompatible, path, st.Size(), mib)
	}
	return nil
}

// Restorer is implemented by Drivers that start machines from snapshots.
type Restorer interface {
	// Restore spawns the VMM and loads a snapshot into it. cfg is as it was for
	// the machine that the snapshot is of, but for Dir, logs, launcher, the tap
	// or socket of Net, and Metadata: disks lie in Dir under the same names, and
	// Net.MTU is that of the original. When it returns, the guest is paused:
	// Resume lets it go on. An error wraps ErrIncompatible when the snapshot can
	// never be loaded here; nothing is left running then.
	Restore(ctx context.Context, cfg Config, from RestoreFrom) (Machine, error)
}
