package supervisor

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
)

// littleRoom is when a disk counts as full, bytes.
const littleRoom = 1 << 20

// checkRoom refuses a VM for whose own copies of the snapshot's disks there is no
// room, before they are made.
func checkRoom(dir string, snap *snapshot.Snapshot) error {
	var need int64
	for _, d := range snap.Manifest.Disks {
		if !d.ReadOnly {
			need += allocated(snap.Path(d.Name))
		}
	}
	return fits(dir, "the disks of snapshot "+snap.Manifest.Title(), need, func() bool { return rootfs.SharesBlocks(dir, snap.State()) })
}

// fits refuses what takes more than a directory's file system has, unless free says
// that it takes nothing.
func fits(dir, what string, need int64, free func() bool) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look for room in %s: %w", dir, err)
	}
	room := int64(st.Bavail) * st.Bsize
	if need <= room || free() {
		return nil
	}
	return fmt.Errorf("%w: %s take %d MiB, and %s has %d MiB", rootfs.ErrNoSpace, what, need>>20, dir, room>>20)
}

// watchRoom warns when the disk that the VM's own is a file on becomes full:
// the guest then has errors on a disk of which it knows that it has room. It
// returns whether it is full.
func (in *instance) watchRoom(before bool) (full bool) {
	dir := string(in.vm.Dir())
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks == 0 {
		return before
	}
	full = st.Bavail*uint64(st.Bsize) < littleRoom
	if !full || before {
		return full
	}
	text := fmt.Sprintf("the file system of %s is full: what the container writes to its disk may be lost; make room there", dir)
	in.warn(text, time.Now())
	return full
}

// warn writes down, and tells who started the VM, what has gone wrong on the host
// without ending it.
func (in *instance) warn(text string, now time.Time) {
	if in.vm.Update(func(r *vm.Record) error { r.Warn(text, now); return nil }) != nil {
		in.later(func(r *vm.Record) { r.Warn(text, now) })
	}
	if w := in.Stdio.Err; w != nil {
		_, _ = fmt.Fprintf(w, "fcvm: %s\n", text) // nobody may be reading
	}
}
