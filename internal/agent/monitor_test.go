package agent

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/proc"
)

// monitoredEngine is a fakeEngine whose command, like Podman, has a monitor start the
// container, waits for its end, and then takes away what the monitor has noted.
func monitoredEngine(t *testing.T) engine {
	t.Helper()
	e := fakeEngine(t)
	dir := t.TempDir()
	pid, files := filepath.Join(dir, "pid"), monitorFiles{pid: filepath.Join(dir, "monitor"), exit: filepath.Join(dir, "exit")}
	e.firstPID = pidIn(pid)
	e.monitor = func(string) monitorFiles { return files }
	script := `
		export dir=` + dir + `
		setsid sh -c 'echo $$ >$dir/monitor
			"$@" & echo $! >$dir/pid.new; mv $dir/pid.new $dir/pid
			wait $!; echo $? >$dir/exit.new; mv $dir/exit.new $dir/exit' sh "$@" </dev/null &
		echo $$ >$dir/podman
		while [ ! -e $dir/exit ]; do sleep 0.02; done
		code=$(cat $dir/exit); rm $dir/exit; sleep 0.5; exit $code`
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

// waitNoProcess waits for the end of the process whose id is in the file.
func waitNoProcess(t *testing.T, file string) {
	t.Helper()
	pid, err := readPID(file)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of "+filepath.Base(file), func() bool {
		st, err := proc.Read(pid)
		return err != nil || st.State == 'Z'
	})
}

// Podman does not stay with a container that needs it for nothing, and how that ends
// is known all the same.
func TestPodmanLeaves(t *testing.T) {
	g, dir, b := newMonitoredGuest(t, "trap 'echo bye; exit 7' USR1; echo ready; while :; do sleep 0.02; done")
	b.out.wait(t, "ready")
	waitNoProcess(t, filepath.Join(dir, "podman"))
	if err := g.client.Signal(t.Context(), int(unix.SIGUSR1)); err != nil {
		t.Error(err)
	}
	b.wait(t)
	if b.exit != (agentapi.Exit{Code: 7}) || b.out.String() != "ready\nbye\n" {
		t.Errorf("%+v, %q", b.exit, b.out.String())
	}
}

// A Podman that is about to leave stays when the container has ended meanwhile.
func TestContainerEndsBeforePodmanLeaves(t *testing.T) {
	for _, life := range []string{"0.1", "0.2", "0.24", "0.25", "0.26", "0.3"} {
		t.Run(life, func(t *testing.T) {
			t.Parallel()
			_, _, b := newMonitoredGuest(t, "sleep "+life+"; exit 8")
			b.wait(t)
			if b.exit != (agentapi.Exit{Code: 8}) {
				t.Errorf("%+v", b.exit)
			}
		})
	}
}

// Without its monitor a container is lost, and does not go on unseen.
func TestMonitorKilled(t *testing.T) {
	_, dir, b := newMonitoredGuest(t, "echo ready; exec sleep 1000")
	b.out.wait(t, "ready")
	waitNoProcess(t, filepath.Join(dir, "podman"))
	monitor, err := readPID(filepath.Join(dir, "monitor"))
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
	waitNoProcess(t, filepath.Join(dir, "pid"))
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
