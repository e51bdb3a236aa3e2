package agent

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestStatsAreReadFromTheKernelsTables(t *testing.T) {
	if s := parseCPU("cpu  100 20 30 9999 8888 4 5 77 0 0\ncpu0 1 1 1 1 1 1 1\n"); s != 1.59 {
		t.Errorf("CPU: %f s", s)
	}
	if total, free := parseMemory("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   10 kB\n"); total != 1000<<10 || free != 10<<10 {
		t.Errorf("memory: %d, %d", total, free)
	}
	const dev = "Inter-|   Receive\n face |bytes    packets\n    lo: 9 9 0 0 0 0 0 0 9 9 0\n  eth0:1000 5 0 0 0 0 0 0 2000 6 0\n eth1: 1 1 0 0 0 0 0 0 1\n"
	if in, out := parseNet(dev); in != 1001 || out != 2001 {
		t.Errorf("network: %d, %d", in, out)
	}
	const disks = " 254 0 vda 10 0 4 0 20 0 6 0 0\n 254 1 vda1 10 0 4 0 20 0 6 0 0\n 7 0 loop0 1 1 1 1 1 1 1 1\n 254 16 vdb 1 0 1 0 0 0 0 0\n"
	if r, w := parseDisks(disks); r != 5*512 || w != 6*512 {
		t.Errorf("disks: %d, %d", r, w)
	}
	for _, bad := range []string{"", "\n", "cpu x", "vda", "eth0:", "MemTotal:", strings.Repeat("x", 100)} {
		total, free := parseMemory(bad)
		in, out := parseNet(bad)
		r, w := parseDisks(bad)
		if n := total + free + in + out + r + w; n != 0 || parseCPU(bad) != 0 {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

func TestStatsOverTheChannel(t *testing.T) {
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, carrier)
			st, err := g.client.Stats(t.Context())
			if err != nil || st.MemoryTotal == 0 || st.CPUSeconds == 0 || st.CPUs == 0 || st.Processes != 0 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

func TestProcessesOfTheContainer(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	if _, err := g.client.Processes(t.Context(), false); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("before it runs: %v", err)
	}
	g = newContainerGuest(t, pipeCarrier)
	// The container's process is a shell before it becomes the command.
	var one agentapi.Process
	for deadline := time.Now().Add(time.Minute); one.Command != "sleep 1000"; time.Sleep(time.Millisecond) {
		p, err := g.client.Processes(t.Context(), false)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%+v, %v", p, err)
		}
		if p.Total == 1 && len(p.Processes) == 1 {
			one = p.Processes[0]
		}
	}
	if one.UID != uint32(os.Geteuid()) || one.PID == 0 || one.Resident == 0 || one.State == "" {
		t.Errorf("%+v", one)
	}
	if st, err := g.client.Stats(t.Context()); err != nil || st.Processes != 1 {
		t.Errorf("stats: %+v, %v", st, err)
	}
	all, err := g.client.Processes(t.Context(), true)
	own := func(p agentapi.Process) bool { return p.PID == os.Getpid() }
	if err != nil || !slices.ContainsFunc(all.Processes, own) {
		t.Errorf("of the guest: %d processes without this one, %v", all.Total, err)
	}
}
