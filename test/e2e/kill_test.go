package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/proc"
)

// victim is what is killed.
type victim struct {
	name  string
	flags []string // for run
	// kill kills it. op is the command that is under way.
	kill func(t *testing.T, op *vmProcess, supervisor int)
	// survived: the VM goes on without it.
	survived bool
}

// victims are all processes that a VM depends on, or a command.
func victims() []victim {
	return []victim{
		{name: "supervisor", kill: func(_ *testing.T, _ *vmProcess, supervisor int) { sigkill(supervisor) }},
		{name: "VMM", kill: func(_ *testing.T, _ *vmProcess, supervisor int) {
			sigkill(childOf(supervisor, "qemu-system", "firecracker"))
		}},
		// With --init agent it is process 1, which no signal kills.
		{name: "agent", flags: []string{"--init", "systemd"}, kill: inGuest("kill -9 $(pidof fc-agent)")},
		// What its end as process 1 is: the kernel's.
		{name: "guest", kill: inGuest("echo c >/proc/sysrq-trigger")},
		{name: "slirp4netns", flags: []string{"--network", "slirp4netns"}, kill: func(_ *testing.T, _ *vmProcess, supervisor int) {
			sigkill(childOf(supervisor, "slirp4netns"))
		}},
		{name: "monitor of the container", kill: inGuest("kill -9 $(pidof conmon)")},
		{name: "command", survived: true, kill: func(_ *testing.T, op *vmProcess, _ int) { sigkill(op.Process.Pid) }},
	}
}

// operation is what goes on meanwhile, on the VM "victim".
type operation struct {
	name string
	args func(t *testing.T) []string
	// check looks at one that says that it has done its work.
	check func(t *testing.T, p *vmProcess)
}

func operations(files string) []operation {
	const big = 40000 // lines
	return []operation{
		// The run that made it waits for its gate, which stays closed for a while.
		{name: "run"},
		{
			name: "exec",
			args: func(*testing.T) []string { return []string{"exec", "victim", "seq", "1", strconv.Itoa(big)} },
			check: func(t *testing.T, p *vmProcess) {
				if p.out.String() != numbers(big) {
					t.Errorf("exec ended well, with %d bytes of %d", len(p.out.String()), len(numbers(big)))
				}
			},
		},
		{
			name: "cp",
			args: func(*testing.T) []string { return []string{"cp", "victim:/bin/busybox", filepath.Join(files, "copy")} },
			check: func(t *testing.T, _ *vmProcess) {
				if fi, err := os.Stat(filepath.Join(files, "copy")); err != nil || fi.Size() < 500_000 {
					t.Errorf("cp ended well: %v, %v", fi, err)
				}
			},
		},
		{name: "stop", args: func(*testing.T) []string { return []string{"stop", "--time", "2", "victim"} }},
		{name: "rm", args: func(*testing.T) []string { return []string{"rm", "-f", "victim"} }},
	}
}

// TestKilled kills, at random moments of all that can be under way, each
// process that matters, $FCVM_TEST_KILLS times each. Then nothing may be left
// but what the next command sweeps; ls and rm behave; and the name is free
// again.
func TestKilled(t *testing.T) {
	n := rounds(t, "FCVM_TEST_KILLS", 1)
	for _, v := range victims() {
		t.Run(v.name, func(t *testing.T) {
			if v.name == "slirp4netns" && !slirpHere() {
				t.Skip("this user cannot have that network: no slirp4netns, or no access to /dev/net/tun")
			}
			ops, first := operations(t.TempDir()), rand.IntN(5)
			for i := range n {
				killDuring(t, v, ops[(first+i)%len(ops)])
				if t.Failed() {
					return
				}
			}
			run(t, []string{"--name", "victim"}, "busybox", "echo", "alive").want(t, 0, "alive\n")
		})
	}
}

// longest is the latest moment of an operation at which something is killed.
// Those that are over by then have a victim all the same.
const longest = 1500 * time.Millisecond

func killDuring(t *testing.T, v victim, op operation) {
	t.Helper()
	before := snapshotHost()
	after := time.Duration(rand.Int64N(int64(longest)))
	during := fmt.Sprintf("%s, %s into %s", v.name, after, op.name)
	defer func() {
		if t.Failed() {
			t.Errorf("it was: %s", during)
		}
		fcvm(t, "rm", "-f", "victim")
	}()
	gate := "log=^up"
	if op.name == "run" {
		gate = "log=^ready"
	}
	flags := append([]string{"-d", "--name", "victim", "--cpu", "1", "--wait-ready", gate}, v.flags...)
	p := start(t, runArgs(t, flags, "busybox", "sh", "-c", `trap "exit 0" TERM; echo up; sleep 3; echo ready; while :; do sleep 0.2; done`)...)
	if op.name == "run" {
		p.eventually(t, "container", func() bool { return strings.Contains(fcvm(t, "logs", "victim").stdout, "up") })
	} else if code := p.wait(t); code != 0 {
		t.Errorf("run ended with %d; stderr:\n%s", code, p.errs.String())
		return
	}
	supervisor := describe(t, "victim").Supervisor.PID
	if op.args != nil {
		p = start(t, op.args(t)...)
	}
	time.Sleep(after)
	v.kill(t, p, supervisor)
	code := p.wait(t)
	p.result().wantError(t, code) // whatever it is: no trace of a panic
	if code == 0 && op.check != nil {
		op.check(t, p)
	}
	afterKill(t, v, op)
	if left := leftovers(before); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// result is that of a process that has ended.
func (p *vmProcess) result() result {
	return result{p.out.String(), p.errs.String(), p.ProcessState.ExitCode()}
}

// afterKill looks at what ls says, and removes the VM.
func afterKill(t *testing.T, v victim, op operation) {
	t.Helper()
	status := func() string {
		r := fcvm(t, "ls", "-a", "--filter", "name=victim", "--format", "{{.Name}} {{.Status}}")
		r.wantError(t, 0)
		return r.stdout
	}
	ended := func() bool { return !strings.Contains(status(), "running") && !strings.Contains(status(), "stopping") }
	switch {
	case v.survived && op.name != "stop" && op.name != "rm":
		fcvm(t, "exec", "victim", "echo", "well").want(t, 0, "well\n")
		fcvm(t, "rm", "victim").wantError(t, 125, "running")
		fcvm(t, "rm", "-f", "victim").want(t, 0, "victim\n")
	case v.survived:
		fcvm(t, "rm", "-f", "victim").wantError(t, 0)
	default:
		eventually(t, "end of the VM", ended)
		if r := fcvm(t, "rm", "victim"); r.code != 0 {
			r.wantError(t, 125, "no such VM")
		}
	}
	if s := status(); s != "" {
		t.Errorf("after rm ls has %q", s)
	}
}

// TestKilledSupervisor kills fcvm at random moments of a run in the foreground,
// from its first on.
func TestKilledSupervisor(t *testing.T) {
	n := rounds(t, "FCVM_TEST_KILLS", 20)
	before := snapshotHost()
	for range n {
		p := start(t, runArgs(t, []string{"--name", "victim"}, "busybox", "sh", "-c", "echo up; sleep 1000")...)
		after := time.Duration(rand.Int64N(int64(10 * time.Second)))
		time.Sleep(after)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.wait(t)
		if r := fcvm(t, "ls", "-aq", "--filter", "name=victim"); r.code != 0 || r.stdout != "" {
			t.Fatalf("killed after %s; ls: exit code %d, %q; stderr:\n%s", after, r.code, r.stdout, r.stderr)
		}
		if left := leftovers(before); len(left) > 0 {
			t.Fatalf("killed after %s; left behind: %q", after, left)
		}
	}
	run(t, []string{"--name", "victim"}, "busybox", "echo", "alive").want(t, 0, "alive\n")
}

// TestKilledVMM kills the VMM, or what is about to become one, at random
// moments of a boot.
func TestKilledVMM(t *testing.T) {
	n := rounds(t, "FCVM_TEST_KILLS", 3)
	before := snapshotHost()
	for range n {
		p := start(t, runArgs(t, []string{"--name", "victim"}, "busybox", "sh", "-c", "echo up; sleep 1000")...)
		vmm := 0
		p.eventually(t, "VMM", func() bool {
			vmm = childOf(p.Process.Pid, "qemu-system", "firecracker")
			return vmm != 0
		})
		after := time.Duration(rand.Int64N(int64(8 * time.Second)))
		time.Sleep(after)
		sigkill(vmm)
		p.wait(t)
		p.result().wantError(t, 125, "killed by SIGKILL")
		if r := fcvm(t, "ls", "-aq", "--filter", "name=victim"); r.code != 0 || r.stdout != "" {
			t.Fatalf("killed after %s; ls: exit code %d, %q; stderr:\n%s", after, r.code, r.stdout, r.stderr)
		}
		if left := leftovers(before); len(left) > 0 {
			t.Fatalf("killed after %s; left behind: %q", after, left)
		}
	}
	run(t, []string{"--name", "victim"}, "busybox", "echo", "alive").want(t, 0, "alive\n")
}

// TestAgentIsNotKilled: where the agent is process 1, the container's host
// cannot lose it by a signal.
func TestAgentIsNotKilled(t *testing.T) {
	box := startBox(t)
	fcvm(t, "exec", "--guest", box, "sh", "-c", "kill -KILL 1").want(t, 0, "")
	fcvm(t, "exec", box, "echo", "alive").want(t, 0, "alive\n")
}

// inGuest kills by a command in the guest, which may not live to say that it
// has. It is killed meanwhile if the operation has ended the VM before.
func inGuest(script string) func(*testing.T, *vmProcess, int) {
	return func(t *testing.T, _ *vmProcess, _ int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
		defer cancel()
		_ = command(ctx, "exec", "--guest", "victim", "sh", "-c", script).Run()
	}
}

func sigkill(pid int) {
	if pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended before
	}
}

// childOf returns the process with such a name among those that descend from
// another; 0: there is none.
func childOf(parent int, names ...string) int {
	all, err := proc.All()
	if err != nil {
		return 0
	}
	for _, st := range proc.Tree(all, parent) {
		for _, name := range names {
			if strings.HasPrefix(st.Name, name) {
				return st.PID
			}
		}
	}
	return 0
}
