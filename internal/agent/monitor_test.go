package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// monitoredEngine is a fakeEngine whose command, like Podman, has a monitor start the
// container, and waits for its end. Its file "podman" is there as long as it runs.
func monitoredEngine(t *testing.T) engine {
	t.Helper()
	e := fakeEngine(t)
	dir := t.TempDir()
	pid, files := filepath.Join(dir, "pid"), monitorFiles{pid: filepath.Join(dir, "monitor"), exit: filepath.Join(dir, "exit")}
	e.firstPID = func() (int, bool) { n, err := readInt(pid); return n, err == nil }
	e.monitor = func(string) monitorFiles { return files }
	script := `
		export dir=` + dir + `
		setsid sh -c 'echo $$ >$dir/monitor
			"$@" & echo $! >$dir/pid.new; mv $dir/pid.new $dir/pid
			wait $!; echo $? >$dir/exit.new; mv $dir/exit.new $dir/exit' sh "$@" </dev/null &
		echo $$ >$dir/podman
		trap "rm $dir/podman; exit 1" TERM
		while [ ! -e $dir/exit ]; do sleep 0.02; done; rm $dir/podman; exit $(cat $dir/exit)`
	e.command = func(c *agentapi.Container) (*exec.Cmd, error) {
		return exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, c.Args...)...), nil
	}
	return e
}

func newMonitoredGuest(t *testing.T, script string) (g *guest, dir string, b *background) {
	t.Helper()
	g = newGuest(t, pipeCarrier)
	e := monitoredEngine(t)
	g.agent.container.engine = e
	g.plan(t, shell(script))
	s := g.attach(t)
	b = follow(t, s, nil)
	g.start(t)
	return g, filepath.Dir(e.monitor("").pid), b
}

func waitNoPodman(t *testing.T, dir string) {
	t.Helper()
	eventually(t, "Podman's end", func() bool {
		_, err := os.Stat(filepath.Join(dir, "podman"))
		return os.IsNotExist(err)
	})
}

// Podman does not stay with a container that needs it for nothing, and how that ends
// is known all the same.
func TestPodmanLeaves(t *testing.T) {
	g, dir, b := newMonitoredGuest(t, "trap 'echo bye; exit 7' USR1; echo ready; while :; do sleep 0.02; done")
	b.out.wait(t, "ready")
	waitNoPodman(t, dir)
	if err := g.client.Signal(t.Context(), int(unix.SIGUSR1)); err != nil {
		t.Error(err)
	}
	b.wait(t)
	if b.exit != (agentapi.Exit{Code: 7}) || b.out.String() != "ready\nbye\n" {
		t.Errorf("%+v, %q", b.exit, b.out.String())
	}
}

// A container that is over before Podman has left is one, too.
func TestContainerEndsBeforePodmanLeaves(t *testing.T) {
	_, _, b := newMonitoredGuest(t, "sleep 0.1; exit 8")
	b.wait(t)
	if b.exit != (agentapi.Exit{Code: 8}) {
		t.Errorf("%+v", b.exit)
	}
}

// Without its monitor a container is lost, and does not go on unseen.
func TestMonitorKilled(t *testing.T) {
	_, dir, b := newMonitoredGuest(t, "echo ready; exec sleep 1000")
	b.out.wait(t, "ready")
	waitNoPodman(t, dir)
	first, err := readInt(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	monitor, err := readInt(filepath.Join(dir, "monitor"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.wait(t)
	if b.exit != (agentapi.Exit{Code: lostCode}) {
		t.Errorf("%+v", b.exit)
	}
	eventually(t, "container's end", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", first))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

// What the monitor notes only after a while is waited for, what it never notes is not.
func TestWaitForNote(t *testing.T) {
	for name, tt := range map[string]struct {
		monitor string
		want    int
	}{
		"late":    {"sleep 0.3; echo 9 >exit.new; mv exit.new exit; exec sleep 1000", 9},
		"lost":    {"echo -1 >exit", 255},
		"never":   {"exit 0", lostCode},
		"garbage": {"echo x >exit", lostCode},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := &monitor{pidfd: startWithPidfd(t, dir, tt.monitor), exit: filepath.Join(dir, "exit")}
			if got := m.wait(startWithPidfd(t, dir, "exit 0")); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}

func startWithPidfd(t *testing.T, dir, script string) int {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	fd := -1
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{PidFD: &fd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	return fd
}
