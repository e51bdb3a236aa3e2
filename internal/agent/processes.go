package agent

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/proc"
)

// getProcesses lists the processes of the container or of the guest.
func (a *agent) getProcesses(w http.ResponseWriter, r *http.Request) {
	guest := r.URL.Query().Get(agentapi.ParamGuest) == "1"
	found, err := a.processes(guest)
	if err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	slices.SortFunc(found, func(a, b proc.Stat) int {
		if a.Start != b.Start {
			return int(int64(a.Start) - int64(b.Start))
		}
		return a.PID - b.PID
	})
	answer := agentapi.Processes{Total: len(found), Processes: []agentapi.Process{}}
	inside := a.container.insidePIDs(found, guest)
	up := time.Duration(uptime() * float64(time.Second))
	for _, st := range found[:min(len(found), agentapi.MaxProcesses)] {
		answer.Processes = append(answer.Processes, agentapi.Process{
			PID: inside[st.PID], Parent: inside[st.Parent], UID: uidOf(st.PID), State: string(rune(st.State)),
			Age: st.Age(up).Seconds(), CPUSeconds: st.CPU.Seconds(), Resident: st.Resident, Command: commandOf(st),
		})
	}
	reply(w, http.StatusOK, answer)
}

// processes returns those of the container: all in its process namespace, and
// what descends from its first one.
func (a *agent) processes(guest bool) ([]proc.Stat, error) {
	all, err := proc.All()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	if guest {
		return all, nil
	}
	first, err := a.container.runningPID()
	if err != nil {
		return nil, err
	}
	found := proc.Tree(all, first)
	have := map[int]bool{}
	for _, st := range found {
		have[st.PID] = true
	}
	space := pidSpace(first)
	if space == "" || space == pidSpace(os.Getpid()) {
		return found, nil
	}
	for _, st := range all {
		if !have[st.PID] && pidSpace(st.PID) == space {
			found = append(found, st)
		}
	}
	return found, nil
}

// pidSpace names a process's namespace of process ids.
func pidSpace(pid int) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return "" // it has ended
	}
	return link
}

// runningPID is the id of the container's first process, which must run.
func (c *container) runningPID() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return 0, errNotRunning
	}
	return c.pid, nil
}

// insidePIDs are the ids of processes as those in the container see them.
func (c *container) insidePIDs(found []proc.Stat, guest bool) map[int]int {
	ids := make(map[int]int, len(found))
	level := 0
	if first, err := c.runningPID(); err == nil && !guest {
		level = max(0, len(namespacePIDs(first))-1)
	}
	for _, st := range found {
		ids[st.PID] = st.PID
		if pids := namespacePIDs(st.PID); level > 0 && level < len(pids) {
			ids[st.PID] = pids[level]
		}
	}
	return ids
}

// namespacePIDs are a process's ids in all namespaces, the agent's own first.
func namespacePIDs(pid int) []int {
	var ids []int
	for _, f := range statusField(pid, "NSpid:") {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil
		}
		ids = append(ids, n)
	}
	return ids
}

func uidOf(pid int) uint32 {
	fields := statusField(pid, "Uid:") // real, effective, …
	if len(fields) < 2 {
		return 0
	}
	return uint32(number(fields[1]))
}

// statusField returns the words behind a key of proc_pid_status(5).
func statusField(pid int, key string) []string {
	for line := range strings.Lines(readFile(fmt.Sprintf("/proc/%d/status", pid))) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

// commandOf is what the process says that it was started as, on one line.
func commandOf(st proc.Stat) string {
	text := "[" + st.Name + "]" // the kernel's, and zombies
	if f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", st.PID)); err == nil {
		b, err := io.ReadAll(io.LimitReader(f, agentapi.MaxCommand))
		_ = f.Close()
		if b = bytes.TrimRight(b, "\x00"); err == nil && len(b) > 0 {
			text = string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
	return printable(text)
}

// printable is a text on one line, without what is not to be seen.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, text)
}
