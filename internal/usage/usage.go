// Package usage says what a VM costs the host: all of its processes, which are
// its supervisor and what descends from that, and what they have used.
//
// Memory is the proportional set size: a page that several processes have
// mapped, such as one of a kernel or a guest root that many VMs share, counts
// for each of them by its part. So the sum over all VMs is what they take
// together, which that of resident sizes is not.
package usage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/proc"
)

// ErrGone: the process is not there any more.
var ErrGone = errors.New("the process has ended")

// maxFile bounds what is read of a file in /proc, bytes.
const maxFile = 64 << 10

// Usage is what the processes of one VM have used since each has started.
type Usage struct {
	Time      time.Time
	Processes int
	CPU       time.Duration
	Memory    *int64 // proportional set size, bytes; nil: the kernel does not tell
	Read      *int64 // bytes from storage, not from its cache; nil as above
	Written   *int64
}

// CPUPercent is how much CPU was used since an earlier look: 100 is one CPU
// that was always busy.
func (u Usage) CPUPercent(before Usage) float64 {
	wall := u.Time.Sub(before.Time)
	if wall <= 0 || u.CPU < before.CPU { // a process has ended
		return 0
	}
	return 100 * float64(u.CPU-before.CPU) / float64(wall)
}

// Host is all processes at one moment.
type Host struct {
	time time.Time
	all  []proc.Stat
}

// Look takes a look at all processes of the host.
func Look() (*Host, error) {
	all, err := proc.All()
	if err != nil {
		return nil, err
	}
	return &Host{time: time.Now(), all: all}, nil
}

// Of adds up what a process and all that descend from it have used. start
// tells the process from another one of its id. The error is ErrGone when it
// was not there.
func (h *Host) Of(pid int, start uint64) (Usage, error) {
	tree := proc.Tree(h.all, pid)
	if len(tree) == 0 || tree[0].Start != start {
		return Usage{}, fmt.Errorf("look at process %d: %w", pid, ErrGone)
	}
	u := Usage{Time: h.time, Processes: len(tree)}
	var memory, read, written sum
	for _, st := range tree {
		u.CPU += st.CPU
		memory.add(st.PID, "smaps_rollup", "Pss:", 1024)
		read.add(st.PID, "io", "read_bytes:", 1)
		written.add(st.PID, "io", "write_bytes:", 1)
	}
	u.Memory, u.Read, u.Written = memory.result(), read.result(), written.result()
	return u, nil
}

// sum adds up one value over processes. Where one is not told, as of a process
// of another user's, the sum would be too small, and there is none.
type sum struct {
	n       int64
	unknown bool
}

func (s *sum) add(pid int, file, key string, unit int64) {
	n, err := readValue(fmt.Sprintf("/proc/%d/%s", pid, file), key)
	switch {
	case errors.Is(err, ErrGone):
	case err != nil:
		s.unknown = true
	default:
		s.n += n * unit
	}
}

func (s *sum) result() *int64 {
	if s.unknown {
		return nil
	}
	return &s.n
}

// readValue returns the number behind a key in a file of /proc.
func readValue(path, key string) (int64, error) {
	f, err := os.Open(path)
	if err == nil {
		defer func() { _ = f.Close() }()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, maxFile)); err == nil {
			return parseValue(string(b), key)
		}
	}
	if isGone(err) {
		return 0, fmt.Errorf("%w: %s", ErrGone, path)
	}
	return 0, err
}

func parseValue(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == key {
			return strconv.ParseInt(fields[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %q in %.100q", key, text)
}

// isGone reports whether a file of /proc could not be read because its process
// has ended: it has none any more, no memory map, or is a zombie.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
