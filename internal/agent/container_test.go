package agent

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestContainerRuns(t *testing.T) {
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, carrier)
			st, err := g.client.WaitAgent(t.Context())
			if err != nil || st.Phase != agentapi.PhaseBooting || st.HavePlan || st.Uptime <= 0 {
				t.Errorf("at first: %+v, %v", st, err)
			}
			g.plan(t, shell("cat; echo err >&2; exit 7"))
			s := g.attach(t)
			if pid := g.start(t); pid <= 0 {
				t.Errorf("process id %d", pid)
			}
			in := strings.Repeat("0123456789\n", 100_000)
			r := run(t, s, strings.NewReader(in))
			if r.out != in || r.err != "err\n" || r.exit != (agentapi.Exit{Code: 7}) {
				t.Errorf("%d bytes of %d, %q, %+v", len(r.out), len(in), r.err, r.exit)
			}
			if err := g.client.Signal(t.Context(), 15); err == nil || !strings.Contains(err.Error(), errNotRunning.Error()) {
				t.Errorf("signal after the end: %v", err)
			}
		})
	}
}

func TestContainerSignals(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.plan(t, shell("trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done"))
	if err := g.client.Signal(t.Context(), 15); err == nil {
		t.Error("a signal before the start: no error")
	}
	s := g.attach(t)
	b := follow(t, s, nil)
	g.start(t)
	b.out.wait(t, "ready")
	if err := g.client.Signal(t.Context(), int(unix.SIGUSR1)); err != nil {
		t.Error(err)
	}
	b.out.wait(t, "usr1")
	if err := s.Signal(int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	b.wait(t)
	if b.exit.Code != 137 {
		t.Errorf("%+v, want 137", b.exit)
	}
}

func TestContainerThatCannotStart(t *testing.T) {
	for _, tc := range []struct {
		message, status string
		want            agentapi.Exit
	}{
		{
			"executable file `nope` not found: OCI runtime attempted to invoke a command that was not found", "127",
			agentapi.Exit{Code: 127, Failed: true, Error: "executable file `nope` not found"},
		},
		{"open executable: Permission denied: OCI permission denied", "126", agentapi.Exit{Code: 126, Failed: true, Error: "open executable: Permission denied"}},
		{"no space left", "1", agentapi.Exit{Code: 125, Failed: true, Error: "no space left"}},
		{"cannot", "0", agentapi.Exit{Code: 125, Failed: true, Error: "cannot"}},
	} {
		for _, tty := range []bool{false, true} {
			g := newGuest(t, pipeCarrier)
			g.plan(t, agentapi.Container{Args: []string{"fail", tc.message, tc.status}, TTY: tty})
			s := g.attach(t)
			if pid := g.start(t); pid != 0 {
				t.Errorf("%s: process id %d of a container that does not run", tc.message, pid)
			}
			r := run(t, s, nil)
			if r.exit != tc.want {
				t.Errorf("terminal %v: got %+v, want %+v", tty, r.exit, tc.want)
			}
			if r.out+r.err != "" {
				t.Errorf("Podman's messages are taken for output: %q, %q", r.out, r.err)
			}
		}
	}
}

func TestContainerStartsOnce(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.plan(t, shell("exit 0"))
	g.start(t)
	if _, err := g.client.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second start: %v", err)
	}
	if err := g.client.SendPlan(t.Context(), &agentapi.Plan{Version: agentapi.Version, Container: shell("x")}); err == nil || !strings.Contains(err.Error(), errHavePlan.Error()) {
		t.Errorf("a second plan: %v", err)
	}
	run(t, g.attach(t), nil)
}

func TestEngineThatIsNotThere(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.agent.container.engine.command = func(*agentapi.Container) (*exec.Cmd, error) {
		return exec.Command("/no/such/podman"), nil
	}
	g.plan(t, shell("true"))
	if _, err := g.client.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "/no/such/podman") {
		t.Errorf("got %v", err)
	}
}

func TestGuestThatCannotGetReady(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.agent.state.fail(errors.New("no disk /dev/vdb"))
	if err := g.client.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "/dev/vdb") {
		t.Errorf("wait: %v", err)
	}
	if _, err := g.client.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "/dev/vdb") {
		t.Errorf("start: %v", err)
	}
	g.agent.state.ready() // too late: the first word holds
	if st := g.agent.state.status(); st.Phase != agentapi.PhaseFailed {
		t.Errorf("phase %s", st.Phase)
	}
}

func TestShutdown(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	off := make(chan struct{}, 1)
	g.agent.poweroff = func() { off <- struct{}{} }
	if err := g.client.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-off
}

func TestStartError(t *testing.T) {
	for in, want := range map[string]string{
		"": "podman could not start the container and did not say why",
		"Error: crun: executable file `x` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found": "executable file `x` not found in $PATH: No such file or directory",
		"warning\nError: OCI runtime error: crun: boom\n": "boom",
		"WARN[0000] one\nWARN[0000] two":                  "WARN[0000] two",
		"\n \n":                                           "podman could not start the container and did not say why",
	} {
		if got := startError(strings.TrimSpace(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// The message that counts is the last one, however many came before.
func TestLastOfManyMessages(t *testing.T) {
	s, err := newStdio(exec.Command("true"), false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	_, err = s.theirs[1].WriteString(strings.Repeat("some warning\n", 2000) + "Error: the reason\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := startError(s.out[1].text(maxStartError)); got != "the reason" {
		t.Errorf("got %q", got)
	}
}
