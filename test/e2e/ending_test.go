package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestUnreadOutput: a VM whose output nobody reads can be removed all the same.
func TestUnreadOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	cmd := command(t.Context(), runArgs(t, []string{"--name", "unread", "--network", "none"}, "busybox", "yes")...)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if _, err := io.ReadFull(r, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	fcvm(t, "rm", "-f", "unread").want(t, 0, "unread\n")
	select {
	case <-ended:
		if code := cmd.ProcessState.ExitCode(); code != 137 {
			t.Errorf("exit code %d, want 137", code)
		}
	case <-time.After(runTimeout):
		t.Fatal("the run does not end")
	}
}

// TestEndsBeforeItIsReady: the command that waits for the gate says what became of
// the container.
func TestEndsBeforeItIsReady(t *testing.T) {
	for code, flags := range map[int][]string{3: {"--rm"}, 0: {"--name", "early"}, 4: {"--name", "tries", "--restart", "on-failure:1"}} {
		r := run(t, append([]string{"-d", "--wait-ready", "tcp=80"}, flags...), "busybox", "sh", "-c", fmt.Sprint("echo cannot bind >&2; exit ", code))
		want := code
		if code == 0 {
			want = 125
		}
		r.wantError(t, want, "did not get ready", fmt.Sprint("ended with code ", code), "tcp=80", "cannot bind")
	}
	if s := status(t, "early"); s.Status != "exited" || s.ExitCode == nil || *s.ExitCode != 0 {
		t.Errorf("%+v", s)
	}
	fcvm(t, "rm", "early", "tries").want(t, 0, "early\ntries\n")
}

// TestGateOverRestarts: a container that is started again and again does not have
// its gate waited for without end.
func TestGateOverRestarts(t *testing.T) {
	t.Cleanup(func() { fcvm(t, "rm", "-f", "looping") })
	r := run(t, []string{"-d", "--name", "looping", "--restart", "always", "--wait-ready", "tcp=80,timeout=8s"}, "busybox", "sh", "-c", "sleep 1; exit 1")
	r.wantError(t, 125, "did not get ready", "within 8s")
}

// TestPausedGate: a paused VM's time does not run.
func TestPausedGate(t *testing.T) {
	p := start(t, runArgs(t, []string{"-d", "--name", "slow", "--wait-ready", "exec=test -e /go,timeout=5s"}, "busybox", "sh", "-c", idle)...)
	t.Cleanup(func() { fcvm(t, "rm", "-f", "slow") })
	p.eventually(t, "container", func() bool { return strings.Contains(fcvm(t, "logs", "slow").stdout, "up") })
	fcvm(t, "pause", "slow").want(t, 0, "slow\n")
	time.Sleep(6 * time.Second)
	fcvm(t, "resume", "slow").want(t, 0, "slow\n")
	fcvm(t, "exec", "slow", "touch", "/go").want(t, 0, "")
	if code := p.wait(t); code != 0 {
		t.Errorf("run -d ended with %d:\n%s", code, p.errs.String())
	}
}

// TestStopOfManyWhoseClientIsGone: VMs that ignore their stop signal are stopped
// at the same time, and all the same when the command was interrupted.
func TestStopOfManyWhoseClientIsGone(t *testing.T) {
	names := []string{"deaf-1", "deaf-2", "deaf-3"}
	for _, name := range names {
		detach(t, []string{"--name", name, "--cpu", "1", "--mem", "192", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", `trap "" TERM; echo up; while :; do sleep 0.1; done`)
	}
	p := start(t, append([]string{"stop", "--time", "5"}, names...)...)
	eventually(t, "stopping VMs", func() bool {
		return !slices.ContainsFunc(names, func(n string) bool { return status(t, n).Status != "stopping" })
	})
	if err := p.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 130 {
		t.Errorf("stop ended with %d:\n%s", code, p.errs.String())
	}
	for _, name := range names {
		eventually(t, "stopped VM", func() bool { return status(t, name).Status == "exited" })
	}
	if out := fcvm(t, "wait", "deaf-1", "deaf-2", "deaf-3").stdout; out != "137\n137\n137\n" {
		t.Errorf("exit codes %q", out)
	}
}

// TestEventsOfAKilledSupervisor: who follows events hears of it without anybody's
// next command.
func TestEventsOfAKilledSupervisor(t *testing.T) {
	id := detach(t, nil, "busybox", "sleep", "1000")
	p := start(t, "events", "--vm", id)
	supervisor := describe(t, id).Supervisor.PID
	time.Sleep(time.Second) // it follows what comes, and says nothing of when it began
	sigkill(supervisor)
	p.waitOutput(t, `"stopped"`)
}

// TestDetachedLetsGoOfDescriptors: what the caller had open is not held by the VM.
func TestDetachedLetsGoOfDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	cmd := command(t.Context(), runArgs(t, []string{"-d", "--name", "holder"}, "busybox", "sleep", "1000")...)
	cmd.ExtraFiles = []*os.File{nil, nil, nil, nil, w} // as 7
	t.Cleanup(func() { fcvm(t, "rm", "-f", "holder") })
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_ = w.Close()
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the pipe is still open: %v", err)
	}
}

// TestSnapshotOnceOverRestarts: what --save-snapshot asks for is done when the VM is
// ready for the first time; a restart is no reason to end it.
func TestSnapshotOnceOverRestarts(t *testing.T) {
	id := detach(t, []string{"--restart", "on-failure:2", "--save-snapshot", "once", "--wait-ready", "log=^up"},
		"busybox", "sh", "-c", `echo up; while ! [ -e /tmp/go ]; do sleep 0.1; done; exit 3`)
	t.Cleanup(func() { fcvm(t, "snapshot", "rm", "-f", "once") })
	fcvm(t, "exec", id, "touch", "/tmp/go").want(t, 0, "")
	eventually(t, "restarted VM that is ready", func() bool { s := status(t, id); return s.Restarts == 1 && s.Ready })
}

// TestExecInACloneThatIsReady: the command of clone --exec waits for the gate.
func TestExecInACloneThatIsReady(t *testing.T) {
	detach(t, []string{"--name", "origin", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", `echo up; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo open >/tmp/gate; sleep 1000`)
	snapshotOf(t, "origin", "closed")
	r := fcvm(t, "clone", "--snapshot", "closed", "--on-restore", "(sleep 2; touch /tmp/go) >/dev/null 2>&1 &", "--wait-ready", "exec=test -e /tmp/gate", "--exec", "cat /tmp/gate")
	r.want(t, 0, "open\n")
	r = fcvm(t, "clone", "--snapshot", "closed", "--wait-ready", "exec=test -e /tmp/gate,timeout=2s", "--exec", "cat /tmp/gate")
	r.wantError(t, 125, "did not get ready", "within 2s")
}
