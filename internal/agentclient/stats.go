package agentclient

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// maxCount is more than any number that a guest can have of anything, and
// small enough to be added up.
const maxCount = 1 << 53

// Stats asks what the guest uses. It is the guest's word, within bounds.
func (c *Client) Stats(ctx context.Context) (agentapi.Stats, error) {
	var st agentapi.Stats
	err := c.call(ctx, http.MethodGet, agentapi.PathStats, nil, &st)
	if err == nil {
		err = checkStats(&st)
	}
	if err != nil {
		return agentapi.Stats{}, fmt.Errorf("ask the guest what it uses: %w", err)
	}
	return st, nil
}

func checkStats(st *agentapi.Stats) error {
	for _, n := range []int64{
		int64(st.CPUs), st.MemoryTotal, st.MemoryAvailable, st.NetReceived, st.NetSent, st.DiskRead, st.DiskWritten, int64(st.Processes),
	} {
		if n < 0 || n > maxCount {
			return fmt.Errorf("%w: it has %d of something", ErrAgent, n)
		}
	}
	if st.MemoryAvailable > st.MemoryTotal {
		return fmt.Errorf("%w: %d of %d bytes of memory are available", ErrAgent, st.MemoryAvailable, st.MemoryTotal)
	}
	return checkSeconds(st.CPUSeconds, st.Uptime)
}

func checkSeconds(times ...float64) error {
	for _, s := range times {
		if math.IsNaN(s) || s < 0 || s > maxCount {
			return fmt.Errorf("%w: a time of %g seconds", ErrAgent, s)
		}
	}
	return nil
}

// Processes lists those of the container, or of the guest around it.
func (c *Client) Processes(ctx context.Context, guest bool) (agentapi.Processes, error) {
	path := agentapi.PathProcs
	if guest {
		path += "?" + agentapi.ParamGuest + "=1"
	}
	var p agentapi.Processes
	err := c.call(ctx, http.MethodGet, path, nil, &p)
	if err == nil {
		err = checkProcesses(&p)
	}
	if err != nil {
		return agentapi.Processes{}, fmt.Errorf("list the processes: %w", err)
	}
	return p, nil
}

func checkProcesses(p *agentapi.Processes) error {
	if len(p.Processes) > agentapi.MaxProcesses || p.Total < len(p.Processes) || p.Total > maxCount {
		return fmt.Errorf("%w: it tells of %d processes of %d", ErrAgent, len(p.Processes), p.Total)
	}
	for i := range p.Processes {
		pr := &p.Processes[i]
		if pr.PID < 0 || pr.Parent < 0 || pr.Resident < 0 || pr.Resident > maxCount || len(pr.State) > 4 {
			return fmt.Errorf("%w: process %d", ErrAgent, pr.PID)
		}
		if err := checkSeconds(pr.Age, pr.CPUSeconds); err != nil {
			return err
		}
		pr.State, pr.Command = oneLine(pr.State), oneLine(pr.Command)
	}
	return nil
}

// oneLine is clean for a column of a table.
func oneLine(s string) string {
	if len(s) > agentapi.MaxCommand {
		s = s[:agentapi.MaxCommand]
	}
	return strings.NewReplacer("\n", "·", "\t", "·").Replace(clean(s))
}
