package e2e

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

func TestTerminal(t *testing.T) {
	cmd := command(t.Context(), runArgs(t, []string{"-it"}, "busybox", "sh", "-c",
		`stty size; trap "echo interrupted" INT; echo ready; until read line; do :; done; echo "line: $line"; read line; stty size; exit 4`)...)
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = term.Close() }()
	defer func() { _ = cmd.Process.Kill() }()
	screen := new(syncBuffer)
	go func() { _, _ = io.Copy(screen, bufio.NewReader(term)) }()
	see := func(text string) {
		t.Helper()
		deadline := time.Now().Add(runTimeout)
		for !strings.Contains(screen.String(), text) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q on the screen:\n%q", text, screen.String())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	typing := func(text string) {
		t.Helper()
		if _, err := term.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	see("33 77")
	see("ready")
	typing("\x03") // Ctrl-C is the container's, not fcvm's
	see("interrupted")
	typing("hello\r")
	see("line: hello")
	if err := pty.Setsize(term, &pty.Winsize{Rows: 44, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // the change has no acknowledgement
	typing("\r")
	see("44 99")
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Errorf("exit code %d (%v), want 4; screen:\n%q", code, err, screen.String())
	}
}

func TestTerminalWithoutOne(t *testing.T) {
	run(t, []string{"-it"}, "busybox", "true").wantError(t, 125, "not a TTY")
}

// TestTerminalOverRestarts: a container that is started again has the size of the
// terminal, and what is typed after its end is the next one's.
func TestTerminalOverRestarts(t *testing.T) {
	cmd := command(t.Context(), runArgs(t, []string{"-it", "--name", "typed", "--restart", "on-failure:1", "--network", "none"}, "busybox", "sh", "-c", `stty size; read line; echo "got $line"; exit 5`)...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 97})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	t.Cleanup(func() { fcvm(t, "rm", "-f", "typed") })
	out := new(syncBuffer)
	go func() { _, _ = io.Copy(out, tty) }()
	defer func() {
		if t.Failed() {
			t.Logf("it showed %q", out.String())
		}
	}()
	for i, line := range []string{"one", "two"} {
		eventually(t, "size of the terminal", func() bool { return strings.Count(out.String(), "31 97") == i+1 })
		if _, err := io.WriteString(tty, line+"\n"); err != nil {
			t.Fatal(err)
		}
		eventually(t, line, func() bool { return strings.Contains(out.String(), "got "+line) })
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("%v; it showed %q", err, out.String())
	}
}
