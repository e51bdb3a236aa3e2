package e2e

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// detach starts a VM in the background and returns its id; the test's end
// removes it.
func detach(t *testing.T, flags []string, image string, cmd ...string) string {
	t.Helper()
	r := run(t, append([]string{"-d"}, flags...), image, cmd...)
	id := strings.TrimSpace(r.stdout)
	if r.code != 0 || !regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(id) {
		t.Fatalf("run -d: exit code %d, stdout %q; stderr:\n%s", r.code, r.stdout, r.stderr)
	}
	t.Cleanup(func() { fcvm(t, "rm", "-f", id) })
	return id
}

// status is what inspect says of a VM.
func status(t *testing.T, vm string) (s struct {
	Status   string `json:"status"`
	Ready    bool   `json:"ready"`
	Health   string `json:"health"`
	Restarts int    `json:"restarts"`
	ExitCode *int   `json:"exit_code"`
},
) {
	t.Helper()
	r := fcvm(t, "inspect", vm)
	list := []json.RawMessage{}
	if r.code != 0 || decode([]byte(r.stdout), &list) != nil || len(list) != 1 || decode(list[0], &s) != nil {
		t.Fatalf("inspect %s: exit code %d, %s; stderr:\n%s", vm, r.code, r.stdout, r.stderr)
	}
	return s
}

type event struct{ Event, Detail string }

// eventsOf is what events tells of a VM.
func eventsOf(t *testing.T, vm string, flags ...string) []event {
	t.Helper()
	var told []event
	for line := range strings.Lines(fcvm(t, append([]string{"events", "--follow=false", "--vm", vm}, flags...)...).stdout) {
		var e event
		if err := decode([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		told = append(told, e)
	}
	return told
}

// handlesTERM is a container that is ready for its stop signal once it has
// written "up".
const handlesTERM = `trap "echo bye; exit 4" TERM; echo up; sleep 1000000 & wait`

func TestDetachedLife(t *testing.T) {
	id := detach(t, []string{"--name", "life", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", handlesTERM)
	if s := status(t, "life"); s.Status != "running" || !s.Ready {
		t.Errorf("after run -d: %+v; want it running and ready", s)
	}
	fcvm(t, "wait", "--ready", "life").want(t, 0, "")

	fcvm(t, "pause", "life").want(t, 0, "life\n")
	fcvm(t, "pause", id).want(t, 0, id+"\n") // once more is no error
	if s := status(t, id[:6]); s.Status != "paused" {
		t.Errorf("after pause: %+v", s)
	}
	fcvm(t, "exec", "--guest", "life", "true").wantError(t, 125, "paused")
	fcvm(t, "resume", "life").want(t, 0, "life\n")
	fcvm(t, "resume", "life").want(t, 0, "life\n")

	fcvm(t, "rename", "life", "afterlife").want(t, 0, "")
	fcvm(t, "stop", "life").wantError(t, 125, "no such VM", "life")
	fcvm(t, "rm", "afterlife").wantError(t, 125, "running", "rm -f")

	waiting := start(t, "wait", "afterlife")
	time.Sleep(200 * time.Millisecond)
	fcvm(t, "stop", "afterlife").want(t, 0, "afterlife\n")
	if code := waiting.wait(t); code != 0 || waiting.out.String() != "4\n" {
		t.Errorf("wait: exit code %d, %q; want the container's exit code; stderr:\n%s", code, waiting.out.String(), waiting.errs.String())
	}
	fcvm(t, "stop", "afterlife").want(t, 0, "afterlife\n")
	fcvm(t, "kill", "afterlife").want(t, 0, "afterlife\n")
	fcvm(t, "kill", "-s", "HUP", "afterlife").wantError(t, 125, "not running")
	fcvm(t, "wait", "afterlife").want(t, 0, "4\n")
	fcvm(t, "logs", "afterlife").want(t, 0, "up\nbye\n")
	fcvm(t, "rename", "afterlife", "ghost").want(t, 0, "")
	fcvm(t, "rm", "ghost").want(t, 0, "ghost\n")
	fcvm(t, "rm", "ghost").wantError(t, 125, "no such VM")

	var kinds []string
	for _, e := range eventsOf(t, id) {
		kinds = append(kinds, e.Event)
	}
	const want = "created started ready paused resumed renamed stopped renamed removed"
	if got := strings.Join(kinds, " "); got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestStopThatIsIgnored(t *testing.T) {
	detach(t, []string{"--name", "deaf"}, "busybox", "sh", "-c", `trap "" TERM; while :; do sleep 0.1; done`)
	began := time.Now()
	fcvm(t, "stop", "--time", "1", "deaf").want(t, 0, "deaf\n")
	t.Logf("stopped after %s", time.Since(began))
	fcvm(t, "wait", "deaf").want(t, 0, "137\n")
}

func TestDetachedFailures(t *testing.T) {
	run(t, []string{"-d", "--name", "x", "--rm"}, "busybox", "no-such-command").wantError(t, 127, "no-such-command")
	r := run(t, []string{"-d", "--rm", "--wait-ready", "tcp=7,timeout=2s"}, "busybox", "sleep", "1000")
	r.wantError(t, 125, "did not get ready", "tcp=7")
	if r := fcvm(t, "ls", "-aq"); r.stdout != "" {
		t.Errorf("left after failed starts: %q", r.stdout)
	}
}

func TestGates(t *testing.T) {
	serve := "mkdir /tmp/www; echo ok > /tmp/www/index.html; httpd -f -p 8080 -h /tmp/www"
	for _, gate := range []string{"http=http://localhost:8080/", "tcp=8080", "agent"} {
		t.Run(gate, func(t *testing.T) {
			id := detach(t, []string{"--wait-ready", gate}, "busybox", "sh", "-c", "sleep 1; "+serve)
			if s := status(t, id); !s.Ready {
				t.Errorf("not ready: %+v", s)
			}
		})
	}
}

func TestRestartOnFailure(t *testing.T) {
	began := time.Now().UTC().Format(time.RFC3339Nano)
	r := run(t, []string{"--name", "again", "--restart", "on-failure:1", "--logs", "both"}, "busybox", "sh", "-c", "echo turn; exit 3")
	t.Cleanup(func() { fcvm(t, "rm", "-f", "again") })
	r.want(t, 3, "turn\nturn\n")
	var told []string
	for _, e := range eventsOf(t, "again", "--since", began) {
		if told = append(told, e.Event); e.Event == "stopped" && !strings.Contains(e.Detail, "with code 3") {
			t.Errorf("stopped because of %q", e.Detail)
		}
	}
	if got := strings.Join(told[max(0, len(told)-7):], " "); got != "created started ready stopped started ready stopped" {
		t.Errorf("events %q", got)
	}
	if s := status(t, "again"); s.Restarts != 1 || s.ExitCode == nil || *s.ExitCode != 3 {
		t.Errorf("%+v; want one restart and exit code 3", s)
	}
}

func TestRemoveForced(t *testing.T) {
	id := detach(t, []string{"--name", "doomed"}, "busybox", "sleep", "1000")
	fcvm(t, "rm", "-f", "doomed", "no-such-vm").want(t, 0, "doomed\n")
	fcvm(t, "inspect", id).wantError(t, 125, "no such VM")
}

// TestDetachedSupervisorIsKilled: a VM in the background ends with its
// supervisor, and the next command says so.
func TestDetachedSupervisorIsKilled(t *testing.T) {
	before := snapshotHost()
	id := detach(t, []string{"--name", "orphan"}, "busybox", "sleep", "1000")
	var records []struct {
		Supervisor struct{ PID int }
	}
	if err := decode([]byte(fcvm(t, "inspect", id).stdout), &records); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(records[0].Supervisor.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "failed VM", func() bool { return status(t, id).Status == "failed" })
	fcvm(t, "stop", "orphan").want(t, 0, "orphan\n")
	fcvm(t, "wait", "orphan").want(t, 0, "125\n")
	fcvm(t, "rm", "orphan").want(t, 0, "orphan\n")
	if left := leftovers(before); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A VM that somebody has killed is started again, as one whose container has
// failed is.
func TestRestartOfALostVM(t *testing.T) {
	id := detach(t, []string{"--name", "lost", "--restart", "on-failure:1"}, "busybox", "sleep", "1000")
	for restarts := range 2 {
		s := status(t, id)
		vmm := describe(t, id).Resolved.VMM.PID
		if vmm == 0 || s.Restarts != restarts {
			t.Fatalf("after %d restarts: %+v", restarts, s)
		}
		sigkill(vmm)
		if restarts == 0 {
			eventually(t, "restart", func() bool {
				s := status(t, id)
				return s.Restarts == 1 && s.Status == "running" && s.Ready
			})
		}
	}
	fcvm(t, "wait", "lost")
	if s := status(t, id); s.Status == "running" || s.Restarts != 1 {
		t.Errorf("at last: %+v", s)
	}
}

// A VM that waits for its next start can be stopped, and has then the exit code of
// the last one.
func TestStopBetweenRestarts(t *testing.T) {
	id := detach(t, []string{"--name", "restless", "--restart", "always"}, "busybox", "sh", "-c", "exit 3")
	eventually(t, "several restarts", func() bool { return status(t, id).Restarts >= 3 }) // pauses grow
	if s := status(t, id); s.Status == "exited" {
		t.Fatalf("--restart always does not hold: %+v", s)
	}
	eventually(t, "pause between two starts", func() bool { return status(t, id).Status == "starting" })
	fcvm(t, "stop", "restless").want(t, 0, "restless\n")
	s := status(t, id)
	if s.Status != "exited" && s.Status != "failed" {
		t.Errorf("after stop: %+v", s)
	}
	restarts := s.Restarts
	time.Sleep(2 * time.Second)
	if s := status(t, id); s.Restarts != restarts || s.Status == "running" || s.Status == "starting" {
		t.Errorf("it was started again: %+v", s)
	}
}

// The clock of a guest that has stood still is right when it goes on: after a pause,
// and after a snapshot.
func TestClockAfterAPause(t *testing.T) {
	const still = 4 * time.Second
	id := detach(t, []string{"--name", "sleeper"}, "busybox", "sleep", "1000")
	right := func(when string) {
		t.Helper()
		// An answer that takes long says little: the quickest of a few counts.
		best := time.Duration(1<<63 - 1)
		for range 5 {
			asked := time.Now()
			r := fcvm(t, "exec", "sleeper", "date", "+%s") // busybox knows no fractions
			answered := time.Now()
			s, err := strconv.ParseInt(strings.TrimSpace(r.stdout), 10, 64)
			if err != nil {
				t.Fatalf("date: %q, %v; stderr:\n%s", r.stdout, err, r.stderr)
			}
			theirs := time.Unix(s, 0)
			best = min(best, max(0, asked.Sub(theirs.Add(time.Second)), theirs.Sub(answered)))
		}
		if best > time.Second {
			t.Errorf("%s the guest's clock is off by %s at least", when, best)
		}
	}
	fcvm(t, "pause", "sleeper").want(t, 0, "sleeper\n")
	time.Sleep(still)
	fcvm(t, "resume", "sleeper").want(t, 0, "sleeper\n")
	right("after a pause")
	if r := fcvm(t, "snapshot", "create", "--name", "short", "sleeper"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { fcvm(t, "snapshot", "rm", "-f", "short") })
	right("after a snapshot")
	fcvm(t, "inspect", "--format", "{{len .Warnings}}", id).want(t, 0, "0\n")
}

// Many pause and resume one VM at the same time: all succeed, and it is what the
// record says.
func TestPauseAtOnce(t *testing.T) {
	id := detach(t, []string{"--name", "still"}, "busybox", "sleep", "1000")
	for _, want := range []struct{ command, status string }{{"pause", "paused"}, {"resume", "running"}, {"pause", "paused"}, {"resume", "running"}} {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { fcvm(t, want.command, "still").want(t, 0, "still\n") })
		}
		all.Wait()
		if s := status(t, id); s.Status != want.status {
			t.Errorf("after %s: %s", want.command, s.Status)
		}
	}
	fcvm(t, "exec", "still", "echo", "hello").want(t, 0, "hello\n")
}

// What sets the variables may be there for the first process only.
func TestEnvFileOfARunInTheBackground(t *testing.T) {
	args := runArgs(t, []string{"-d", "--network", "none", "--env-file", "/dev/stdin"}, "busybox", "sh", "-c", "echo $FROM_STDIN")
	r := fcvmIn(t, strings.NewReader("FROM_STDIN=it is here\n"), args...)
	id := strings.TrimSpace(r.stdout)
	if r.code != 0 {
		t.Fatalf("run -d: exit code %d; stderr:\n%s", r.code, r.stderr)
	}
	t.Cleanup(func() { fcvm(t, "rm", "-f", id) })
	fcvm(t, "wait", id).want(t, 0, "0\n")
	fcvm(t, "logs", id).want(t, 0, "it is here\n")
}
