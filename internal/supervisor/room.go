package supervisor

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vm"
)

// littleRoom is when a disk counts as full, bytes.
const littleRoom = 1 << 20

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
