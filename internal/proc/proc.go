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
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return parseStartTime(b)
}

// parseStartTime finds field 22 of a stat file. The second field is the
// program's name in parentheses and may itself hold spaces and parentheses.
func parseStartTime(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, fmt.Errorf("parse stat: no program name in %q", stat)
	}
	fields := bytes.Fields(stat[i+1:])
	const startTime = 22 - 3 // the first field after the name is number 3
	if len(fields) <= startTime {
		return 0, fmt.Errorf("parse stat: only %d fields after the name", len(fields))
	}
	return strconv.ParseUint(string(fields[startTime]), 10, 64)
}

// Alive reports whether the process with this id and start time still runs.
func Alive(pid int, start uint64) bool {
	t, err := StartTime(pid)
	return err == nil && t == start
}
