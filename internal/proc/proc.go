// Package proc reads what fcvm needs to know of processes from /proc (proc(5)).
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// tick is the unit of times in /proc: Linux gives 100 a second to user space
// on every architecture that Go runs on (USER_HZ).
const tick = time.Second / 100

// Stat is the part of /proc/PID/stat that is used here.
type Stat struct {
	PID      int
	Name     string // of the program, its first 15 bytes; whatever the process says
	State    byte   // field 3
	Parent   int
	CPU      time.Duration // used by all of its threads, in user space and the kernel
	Start    uint64        // clock ticks since boot, field 22
	Resident int64         // bytes of memory, shared ones too
}

// Age is how long the process has run on a host that is up for so long.
func (s Stat) Age(uptime time.Duration) time.Duration {
	return max(0, uptime-time.Duration(s.Start)*tick)
}

// StartTime returns when a process started, in clock ticks since boot.
// Together with its id it names a process for as long as the host is up.
func StartTime(pid int) (uint64, error) {
	st, err := Read(pid)
	return st.Start, err
}

// BootID names the time since the host was last started. In a container it is
// that of the host. Empty: it cannot be known.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// Alive reports whether the process with this id and start time still runs. A
// zombie does not.
func Alive(pid int, start uint64) bool {
	st, err := Read(pid)
	return err == nil && st.Start == start && st.State != 'Z' && st.State != 'X'
}

// Read looks at one process.
func Read(pid int) (Stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		var st Stat
		if st, err = parse(b); err == nil {
			st.PID = pid
			return st, nil
		}
	}
	return Stat{}, fmt.Errorf("look at process %d: %w", pid, err)
}

// All looks at all processes. Those that end meanwhile are left out.
func All() ([]Stat, error) {
	dirs, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return nil, err
	}
	all := make([]Stat, 0, len(dirs))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		st, err := Read(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

// Tree returns the process root and all that descend from it, of those in all.
func Tree(all []Stat, root int) []Stat {
	children := map[int][]Stat{}
	var tree []Stat
	for _, st := range all {
		if st.PID == root {
			tree = append(tree, st)
		} else {
			children[st.Parent] = append(children[st.Parent], st)
		}
	}
	for i := 0; i < len(tree); i++ { // it grows
		tree = append(tree, children[tree[i].PID]...)
	}
	return tree
}

// parse finds the fields. The second one is the program's name in parentheses
// and may itself hold spaces and parentheses.
func parse(b []byte) (Stat, error) {
	i, j := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if i < 0 || j < i {
		return Stat{}, fmt.Errorf("no program name in %q", b)
	}
	// Numbers of the first field after the name, and of those that are wanted.
	const first, parent, user, system, start, resident = 3, 4, 14, 15, 22, 24
	fields := bytes.Fields(b[j+1:])
	if len(fields) <= resident-first {
		return Stat{}, fmt.Errorf("only %d fields after the program's name", len(fields))
	}
	st := Stat{Name: string(b[i+1 : j]), State: fields[0][0]}
	var n [resident + 1]uint64
	for _, f := range []int{parent, user, system, start, resident} {
		var err error
		if n[f], err = strconv.ParseUint(string(fields[f-first]), 10, 63); err != nil {
			return Stat{}, fmt.Errorf("field %d: %w", f, err)
		}
	}
	st.Parent, st.Start = int(n[parent]), n[start]
	st.CPU = time.Duration(n[user]+n[system]) * tick
	st.Resident = int64(n[resident]) * int64(os.Getpagesize())
	return st, nil
}
