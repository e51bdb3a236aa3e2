package e2e

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// TestShow looks at one VM with all that shows what is there.
func TestShow(t *testing.T) {
	const script = `trap "exit 3" TERM; (exec sleep 4321) & head -c 30000000 /dev/urandom >/blob; sync; echo up; while :; do sleep 0.1; done`
	flags := []string{
		"--name", "shown", "--cpu", "1", "--mem", "384", "-p", "127.0.0.1::8080", "--label", "app=show", "-e", "A=1", "-w", "/tmp",
		"--wait-ready", "log=^up", "--health-cmd", "true", "--health-interval", "200ms",
	}
	id := detach(t, flags, "busybox", "sh", "-c", script)
	eventually(t, "good health", func() bool { return status(t, id).Health == "healthy" })
	t.Run("ls", func(t *testing.T) { showLs(t, id) })
	t.Run("inspect", func(t *testing.T) { showInspect(t, id) })
	t.Run("top", func(t *testing.T) { showTop(t, id) })
	t.Run("top of a VM", func(t *testing.T) { showProcesses(t, id) })
	t.Run("top on a terminal", func(t *testing.T) { showLiveTop(t) })
	fcvm(t, "stop", id).want(t, 0, id+"\n")
	fcvm(t, "ls", "--filter", "exited=3", "-q").want(t, 0, id+"\n")
	fcvm(t, "top", "--no-stream", "--format", "{{.Name}}").want(t, 0, "")
	fcvm(t, "top", "shown").wantError(t, 125, "not running", "shown")
}

func showLs(t *testing.T, id string) {
	out := fcvm(t, "ls").stdout
	head, rest, _ := strings.Cut(out, "\n")
	if got := strings.Fields(head); strings.Join(got, " ") != "ID NAME IMAGE STATUS HEALTH AGE CPUS MEMORY PORTS DRIVER" {
		t.Errorf("columns %q", got)
	}
	for _, want := range []string{id, "shown", "busybox", "running", "healthy", "384.0 MiB", "->8080/tcp", env.driver} {
		if !strings.Contains(rest, want) {
			t.Errorf("ls has no %q:\n%s", want, out)
		}
	}
	fcvm(t, "ls", "--filter", "label=app=show", "--filter", "health=healthy", "-q").want(t, 0, id+"\n")
	fcvm(t, "ls", "--filter", "health=unhealthy", "-q").want(t, 0, "")
}

func showInspect(t *testing.T, id string) {
	var vms []struct {
		Status   string
		History  []struct{ Time, Status string }
		Phases   []struct{ Name string }
		Resolved struct {
			Driver     string
			VMMVersion string `json:"vmm_version"`
			Ports      []string
			Process    struct {
				Env     []string
				WorkDir string `json:"work_dir"`
			}
			Link  struct{ Address, MAC string }
			Disks []struct {
				ID, Device, Path string
				ReadOnly         bool `json:"read_only"`
			}
		}
		DiskUsage []struct {
			ID              string
			Size, Allocated int64
		} `json:"disk_usage"`
		Lineage []string
	}
	r := fcvm(t, "inspect", id)
	if err := decode([]byte(r.stdout), &vms); r.code != 0 || err != nil || len(vms) != 1 {
		t.Fatalf("exit code %d, %v; stderr:\n%s", r.code, err, r.stderr)
	}
	v := vms[0]
	var phases []string
	for _, p := range v.Phases {
		phases = append(phases, p.Name)
	}
	if len(v.History) != 3 || v.History[2].Status != "running" || v.History[2].Time == "" || !slices.Contains(phases, "container start") || !slices.Contains(phases, "ready") || v.Lineage == nil {
		t.Errorf("history %v, phases %v, lineage %v", v.History, v.Phases, v.Lineage)
	}
	res := v.Resolved
	if res.Driver != env.driver || res.VMMVersion == "" || len(res.Ports) != 1 || res.Process.WorkDir != "/tmp" ||
		!strings.Contains(strings.Join(res.Process.Env, " "), "A=1") || res.Link.Address != "10.0.2.15/24" || res.Link.MAC == "" {
		t.Errorf("resolved: %+v", res)
	}
	if len(res.Disks) != 3 || res.Disks[2].Device != "/dev/vdc" || res.Disks[2].ReadOnly || !res.Disks[1].ReadOnly ||
		!strings.Contains(res.Disks[1].Path, "/images/") {
		t.Errorf("disks: %+v", res.Disks)
	}
	if len(v.DiskUsage) != 3 || v.DiskUsage[2].Allocated < 30_000_000 || v.DiskUsage[2].Allocated >= v.DiskUsage[2].Size {
		t.Errorf("disk usage: %+v", v.DiskUsage)
	}
}

func showTop(t *testing.T, id string) {
	var vms []struct {
		ID         string
		CPUPercent float64 `json:"cpu_percent"`
		Memory     *int64
		Processes  int
		GuestError string `json:"guest_error"`
		Guest      *struct {
			MemoryUsed  int64 `json:"memory_used"`
			MemoryTotal int64 `json:"memory_total"`
			NetReceived int64 `json:"net_received"`
			DiskWritten int64 `json:"disk_written"`
			Processes   int
		}
	}
	const mib = 1 << 20
	eventually(t, "an answer of the guest's in top", func() bool {
		r := fcvm(t, "top", "--no-stream", "--format", "json")
		if err := decode([]byte(r.stdout), &vms); r.code != 0 || err != nil || len(vms) != 1 || vms[0].ID != id {
			t.Fatalf("exit code %d, %v, %+v; stderr:\n%s", r.code, err, vms, r.stderr)
		}
		return vms[0].Guest != nil
	})
	v := vms[0]
	// The guest has made a file of 30 MB, and so the VMM has pages for it.
	if v.Memory == nil || *v.Memory < 50*mib || *v.Memory > 1500*mib || v.CPUPercent < 0 || v.CPUPercent > 100*64 || v.Processes < 2 {
		t.Errorf("of the host: %+v, memory %v", v, v.Memory)
	}
	g := v.Guest
	if g.MemoryTotal < 250*mib || g.MemoryTotal > 384*mib || g.MemoryUsed < 10*mib || g.DiskWritten < 25*mib || g.Processes < 2 {
		t.Errorf("of the guest: %+v", *g)
	}
	fcvm(t, "stats", "--no-stream", "--format", "{{.Name}}", id).want(t, 0, "shown\n")
	out := fcvm(t, "top", "--no-stream").stdout
	if !strings.HasPrefix(out, "ID ") || !strings.Contains(out, "shown") || strings.Count(out, "\n") != 2 {
		t.Errorf("table:\n%s", out)
	}
	fcvm(t, "pause", id).want(t, 0, id+"\n")
	if out := fcvm(t, "top", "--no-stream").stdout; !strings.Contains(out, "paused") {
		t.Errorf("table of a paused VM:\n%s", out)
	}
	fcvm(t, "resume", id).want(t, 0, id+"\n")
}

func showProcesses(t *testing.T, id string) {
	var procs []struct {
		PID, Parent int
		Command     string
	}
	r := fcvm(t, "top", "--no-stream", "--sort", "age", "--format", "json", id)
	if err := decode([]byte(r.stdout), &procs); r.code != 0 || err != nil || len(procs) < 2 {
		t.Fatalf("exit code %d, %v, %+v; stderr:\n%s", r.code, err, procs, r.stderr)
	}
	if procs[0].PID != 1 || procs[0].Parent != 0 || !strings.HasPrefix(procs[0].Command, "sh -c trap") {
		t.Errorf("the container's first process: %+v", procs[0])
	}
	if !strings.Contains(r.stdout, `"command":"sleep 4321"`) || strings.Contains(r.stdout, "conmon") {
		t.Errorf("the container's processes: %+v", procs)
	}
	if out := fcvm(t, "top", "--no-stream", "--guest", id).stdout; !strings.Contains(out, "conmon") || !strings.Contains(out, "[kthreadd]") {
		t.Errorf("the guest's processes:\n%s", out)
	}
}

func showLiveTop(t *testing.T) {
	cmd := command(t.Context(), "top", "--interval", "300ms")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 10, Cols: 120})
	if err != nil {
		t.Fatal(err)
	}
	screen := new(syncBuffer)
	read := make(chan struct{})
	go func() { _, _ = io.Copy(screen, tty); close(read) }()
	eventually(t, "two frames", func() bool { return strings.Count(screen.String(), "shown") >= 2 })
	if _, err := tty.WriteString("mrq"); err != nil {
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("top ended with %v", err)
		}
	case <-time.After(runTimeout):
		_ = cmd.Process.Kill()
		t.Error("q does not end top")
	}
	<-read
	_ = tty.Close()
	if s := screen.String(); !strings.HasSuffix(s, "\x1b[?25h\x1b[?1049l") {
		t.Errorf("the terminal is not given back: %q", s[max(0, len(s)-60):])
	}
}
