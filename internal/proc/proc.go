// Package proc reads what fcvm needs to know of processes from /proc (proc(5)).
package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// StartTime returns when a process started, in clock ticks since boot.
// Together with its id it names a process for as long as the host is up.
func StartTime(pid int) (uint64, error) {
	st, err := read(pid)
	return st.start, err
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
	st, err := read(pid)
	return err == nil && st.start == start && st.state != 'Z' && st.state != 'X'
}

// stat is the part of /proc/PID/stat that is used here.
type stat struct {
	state byte   // field 3
	start uint64 // field 22
}

func read(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		var st stat
		if st, err = parse(b); err == nil {
			return st, nil
		}
	}
	return stat{}, fmt.Errorf("read start time of process %d: %w", pid, err)
}

// parse finds the fields. The second one is the program's name in parentheses
// and may itself hold spaces and parentheses.
func parse(b []byte) (stat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, fmt.Errorf("no program name in %q", b)
	}
	const first, start = 3, 22 // numbers of the first field after the name, and of the start time
	fields := bytes.Fields(b[i+1:])
	if len(fields) <= start-first {
		return stat{}, fmt.Errorf("only %d fields after the program's name", len(fields))
	}
	t, err := strconv.ParseUint(string(fields[start-first]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return stat{state: fields[0][0], start: t}, nil
}
