package cli

import (
	"cmp"
	"context"
	"errors"
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
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vm"
)

const (
	// statsTimeout is how long a guest may take to say what it uses. One that
	// takes longer is shown without; the others do not wait for it.
	statsTimeout = 3 * time.Second
	statsAtOnce  = 32
)

// topVM is one VM as `fcvm top` shows it. Of what is not known there is null.
type topVM struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Status     vm.Status `json:"status"`
	Age        float64   `json:"age"`         // seconds
	CPUPercent float64   `json:"cpu_percent"` // of the host; 100 is one CPU
	CPUSeconds float64   `json:"cpu_seconds"`
	Memory     *int64    `json:"memory"` // of the host, proportional set size, bytes
	Read       *int64    `json:"read"`   // of the host's storage, bytes
	Written    *int64    `json:"written"`
	Processes  int       `json:"processes"` // of the host
	Guest      *topGuest `json:"guest"`     // null: it does not say
	GuestError string    `json:"guest_error,omitempty"`

	usage usage.Usage
}

// topGuest is what the guest says.
type topGuest struct {
	agentapi.Stats

	MemoryUsed int64 `json:"memory_used"` // bytes
}

// topVMs watches all VMs that run, or some.
type topVMs struct {
	store *store.Store
	only  map[string]bool // ids; nil: all
	vms   []topVM
}

// errAllEnded: there is nothing more to see of those that were asked for.
var errAllEnded = errors.New("all of them have ended")

// limit has only those watched that are named, which must run.
func (t *topVMs) limit(refs []string) error {
	for _, ref := range refs {
		e, err := t.store.Find(ref)
		if err = errors.Join(err, e.Err); err != nil {
			return err
		}
		if !e.Alive {
			return notRunning(e)
		}
		if t.only == nil {
			t.only = map[string]bool{}
		}
		t.only[e.Record.ID] = true
	}
	return nil
}

func (t *topVMs) look(ctx context.Context) error {
	entries, err := t.store.List()
	if err != nil {
		return err
	}
	host, err := usage.Look()
	if err != nil {
		return err
	}
	before := map[string]usage.Usage{}
	for _, v := range t.vms {
		before[v.ID] = v.usage
	}
	now := time.Now()
	t.vms = nil
	for _, e := range entries {
		r := e.Record
		if e.Err != nil || !e.Alive || t.only != nil && !t.only[r.ID] {
			continue
		}
		u, err := host.Of(r.Supervisor.PID, r.Supervisor.Start)
		if errors.Is(err, usage.ErrGone) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return err
		}
		v := topVM{
			ID: r.ID, Name: r.Name, Status: r.Status, Age: max(0, now.Sub(r.Created).Seconds()), CPUSeconds: u.CPU.Seconds(),
			Memory: u.Memory, Read: u.Read, Written: u.Written, Processes: u.Processes, usage: u,
		}
		if b, ok := before[r.ID]; ok {
			v.CPUPercent = u.CPUPercent(b)
		}
		t.vms = append(t.vms, v)
	}
	if t.only != nil && len(t.vms) == 0 {
		return errAllEnded
	}
	t.askGuests(ctx)
	return ctx.Err()
}

// askGuests asks all that run at the same time.
func (t *topVMs) askGuests(ctx context.Context) {
	allDone(sideBySide(len(t.vms), statsAtOnce, func(i int) {
		v := &t.vms[i]
		if v.Status != vm.StatusRunning && v.Status != vm.StatusStopping {
			v.GuestError = "it is " + string(v.Status)
			return
		}
		c := agentclient.New(supervisor.DialAgent(t.store, v.ID))
		defer c.Close()
		ctx, cancel := context.WithTimeout(ctx, statsTimeout)
		defer cancel()
		st, err := c.Stats(ctx)
		if err != nil {
			v.GuestError = err.Error()
			return
		}
		v.Guest = &topGuest{Stats: st, MemoryUsed: st.MemoryTotal - st.MemoryAvailable}
	}))
}

// topOrders are the ways to sort; what is large comes first.
var topOrders = []topOrder{
	{"cpu", 'c', descending(func(v *topVM) float64 { return v.CPUPercent }), descending(func(p *topProcess) float64 { return p.CPUPercent })},
	{"memory", 'm', descending(func(v *topVM) int64 { return known(v.Memory) }), descending(func(p *topProcess) int64 { return p.Resident })},
	{"guest-memory", 'g', descending(func(v *topVM) int64 { return v.guest().MemoryUsed }), descending(func(p *topProcess) int64 { return p.Resident })},
	{"network", 'n', descending(func(v *topVM) int64 { return v.guest().NetReceived + v.guest().NetSent }), nil},
	{"disk", 'd', descending(func(v *topVM) int64 { return v.guest().DiskRead + v.guest().DiskWritten }), nil},
	{"processes", 'p', descending(func(v *topVM) int { return v.guest().Processes }), nil},
	{"age", 'a', descending(func(v *topVM) float64 { return v.Age }), descending(func(p *topProcess) float64 { return p.Age })},
	{"name", 'o', func(a, b *topVM) int { return cmp.Compare(a.Name, b.Name) }, func(a, b *topProcess) int { return cmp.Compare(a.Command, b.Command) }},
}

func descending[T any, K cmp.Ordered](key func(*T) K) func(a, b *T) int {
	return func(a, b *T) int { return cmp.Compare(key(b), key(a)) }
}

func known(n *int64) int64 {
	if n == nil {
		return -1
	}
	return *n
}

func (v *topVM) guest() topGuest {
	if v.Guest == nil {
		return topGuest{MemoryUsed: -1}
	}
	return *v.Guest
}

func (t *topVMs) sort(o topOrder, reverse bool) {
	slices.SortStableFunc(t.vms, func(a, b topVM) int { return turned(o.vms(&a, &b), reverse) })
}

func turned(order int, reverse bool) int {
	if reverse {
		return -order
	}
	return order
}

func (t *topVMs) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "ID\tNAME\tSTATUS\tCPU %\tMEMORY\tGUEST MEM\tNET IN/OUT\tDISK READ/WRITTEN\tPROCS")
	for i := range t.vms {
		v := &t.vms[i]
		guestMem, net, disk, procs := "-", "-", "-", "-"
		if g := v.Guest; g != nil {
			guestMem = pair(g.MemoryUsed, g.MemoryTotal)
			net, disk = pair(g.NetReceived, g.NetSent), pair(g.DiskRead, g.DiskWritten)
			procs = strconv.Itoa(g.Processes)
		}
		memory := "-"
		if v.Memory != nil {
			memory = progress.FormatBytes(*v.Memory)
		}
		_, _ = fmt.Fprintln(tw, strings.Join([]string{
			v.ID, v.Name, string(v.Status), percent(v.CPUPercent), memory, guestMem, net, disk, procs,
		}, "\t"))
	}
	return tw.Flush()
}

func percent(p float64) string { return strconv.FormatFloat(p, 'f', 1, 64) }

func pair(a, b int64) string {
	return progress.FormatBytes(a) + " / " + progress.FormatBytes(b)
}

func (t *topVMs) write(w io.Writer, f format) error { return writeLine(w, f, t.vms) }
