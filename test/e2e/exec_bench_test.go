package e2e

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
)

// BenchmarkExec measures `true` in a container: by the agent, over a channel
// that is there; by the whole fcvm exec command; and by podman exec inside the
// same guest, as the guest's own clock has it. The three take turns; the
// ratios are those of the medians.
func BenchmarkExec(b *testing.B) {
	box := startBox(b)
	client := agentOf(b, box)
	defer client.Close()
	var agent, command, podman []time.Duration
	for b.Loop() {
		podman = append(podman, podmanExec(b, client))
		agent = append(agent, agentExec(b, client))
		command = append(command, fcvmExec(b, box))
	}
	a, c, p := median(agent), median(command), median(podman)
	b.ReportMetric(a.Seconds(), "agent-s")
	b.ReportMetric(c.Seconds(), "fcvm-s")
	b.ReportMetric(p.Seconds(), "podman-s")
	b.ReportMetric(a.Seconds()/p.Seconds(), "agent/podman")
	b.ReportMetric(c.Seconds()/p.Seconds(), "fcvm/podman")
	b.ReportMetric(0, "ns/op") // of all together: it says nothing
	if a > p/4 || c > p/2 {
		b.Errorf("true takes %s by the agent and %s by fcvm exec; podman exec takes %s, and they may take a quarter and half of that", a, c, p)
	}
}

// agentOf is a client of a VM's agent.
func agentOf(b *testing.B, box string) *agentclient.Client {
	b.Helper()
	cmd := command(b.Context(), "inspect", "--format", "{{.ID}}", box)
	id, err := cmd.Output()
	if err != nil {
		b.Fatal(withStderr(err))
	}
	st, err := store.Open(paths.Layout{Data: env.data, Runtime: env.runtime})
	if err != nil {
		b.Fatal(err)
	}
	return agentclient.New(supervisor.DialAgent(st, strings.TrimSpace(string(id))))
}

func runInGuest(b *testing.B, client *agentclient.Client, req agentapi.ExecRequest) string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), runTimeout)
	defer cancel()
	s, err := client.Exec(ctx, req)
	if err != nil {
		b.Fatal(err)
	}
	var out syncBuffer
	exit, err := s.Run(ctx, agentclient.Stdio{Stdout: &out, Stderr: &out})
	if err != nil || exit.Code != 0 {
		b.Fatalf("%q: %+v, %v: %s", req.Args, exit, err, out.String())
	}
	return out.String()
}

func agentExec(b *testing.B, client *agentclient.Client) time.Duration {
	start := time.Now()
	runInGuest(b, client, agentapi.ExecRequest{Args: []string{"true"}})
	return time.Since(start)
}

func fcvmExec(b *testing.B, box string) time.Duration {
	b.Helper()
	cmd := command(b.Context(), "exec", box, "true")
	start := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

const timedPodmanExec = `s=${EPOCHREALTIME/./}; podman exec "$(cat /run/fcvm/cid)" true || exit; echo $((${EPOCHREALTIME/./} - s))`

// untilQuiet waits for what podman exec leaves running when it has returned:
// conmon has another Podman clean up. What is measured next would share the
// guest with it.
const untilQuiet = `for p in $(pidof podman); do while grep -qsxz cleanup /proc/$p/cmdline; do sleep 0.1; done; done`

func podmanExec(b *testing.B, client *agentclient.Client) time.Duration {
	b.Helper()
	inGuest := func(script string) string {
		return runInGuest(b, client, agentapi.ExecRequest{Args: []string{"bash", "-c", script}, Guest: true})
	}
	out := inGuest(timedPodmanExec)
	inGuest(untilQuiet)
	us, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(us) * time.Microsecond
}
