package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
)

// processesTimeout is how long a guest may take to list its processes.
const processesTimeout = 30 * time.Second

// topProcess is one process in a VM.
type topProcess struct {
	agentapi.Process

	CPUPercent float64 `json:"cpu_percent"` // of one CPU of the guest
}

// topProcesses watches what runs in one VM.
type topProcesses struct {
	store *store.Store
	ref   string
	guest bool

	client *agentclient.Client // nil before the first look
	total  int
	procs  []topProcess
	at     time.Time
}

// open finds the VM, once: a name may become another's.
func (t *topProcesses) open() error {
	if t.client != nil {
		return nil
	}
	e, err := t.store.Find(t.ref)
	if err == nil {
		err = e.Err
	}
	if err != nil {
		return err
	}
	if _, err := supervisorOf(t.store, e); err != nil {
		return err
	}
	t.client = agentclient.New(supervisor.DialAgent(t.store, e.Record.ID))
	return nil
}

func (t *topProcesses) look(ctx context.Context) error {
	if err := t.open(); err != nil {
		return err
	}
	defer t.client.Close() // between two looks nothing is held open
	ctx, cancel := context.WithTimeout(ctx, processesTimeout)
	defer cancel()
	found, err := t.client.Processes(ctx, t.guest)
	if err != nil {
		return fmt.Errorf("VM %s: %w", t.ref, err)
	}
	now := time.Now()
	before := map[int]topProcess{}
	for _, p := range t.procs {
		before[p.PID] = p
	}
	wall := now.Sub(t.at).Seconds()
	t.procs, t.total, t.at = nil, found.Total, now
	for _, p := range found.Processes {
		tp := topProcess{Process: p}
		if b, ok := before[p.PID]; ok && wall > 0 && p.Age >= b.Age {
			tp.CPUPercent = max(0, 100*(p.CPUSeconds-b.CPUSeconds)/wall)
		}
		t.procs = append(t.procs, tp)
	}
	return nil
}

func (t *topProcesses) sort(o topOrder, reverse bool) {
	by := o.procs
	if by == nil {
		by = descending(func(p *topProcess) float64 { return p.Age })
	}
	slices.SortStableFunc(t.procs, func(a, b topProcess) int { return turned(by(&a, &b), reverse) })
}

func (t *topProcesses) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "PID\tPARENT\tUID\tSTATE\tCPU %\tTIME\tMEMORY\tAGE\tCOMMAND")
	for _, p := range t.procs {
		_, _ = fmt.Fprintln(tw, strings.Join([]string{
			strconv.Itoa(p.PID), strconv.Itoa(p.Parent), strconv.FormatUint(uint64(p.UID), 10), p.State,
			percent(p.CPUPercent), seconds(p.CPUSeconds), progress.FormatBytes(p.Resident), seconds(p.Age), p.Command,
		}, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if more := t.total - len(t.procs); more > 0 {
		_, err := fmt.Fprintf(w, "and %d more\n", more)
		return err
	}
	return nil
}

// seconds is a time that a guest gave, for people.
func seconds(s float64) string {
	const longest = 1e9 // thirty years
	return progress.FormatDuration(time.Duration(min(s, longest) * float64(time.Second)))
}

func (t *topProcesses) write(w io.Writer, f format) error { return writeLine(w, f, t.procs) }
