package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// startBox runs a VM whose container does nothing, and returns its name. It
// ends with the test.
func startBox(t testing.TB, flags ...string) string {
	t.Helper()
	name := fmt.Sprintf("box-%x", time.Now().UnixNano()&0xffffff)
	flags = append([]string{"--name", name, "--network", "none"}, flags...)
	p := start(t, runArgs(t, flags, "busybox", "sh", "-c", `trap "exit 0" TERM; echo up; while :; do sleep 1; done`)...)
	t.Cleanup(func() {
		_ = p.Process.Signal(syscall.SIGTERM)
		if code := p.wait(t); code != 0 {
			t.Errorf("the box ended with code %d; stderr:\n%s", code, p.errs.String())
		}
	})
	p.waitOutput(t, "up")
	return name
}

func TestExec(t *testing.T) {
	box := startBox(t)
	t.Run("streams and exit codes", func(t *testing.T) { testExecStreams(t, box) })
	t.Run("surroundings", func(t *testing.T) { testExecSurroundings(t, box) })
	t.Run("commands that cannot run", func(t *testing.T) { testExecFailures(t, box) })
	t.Run("stdin", func(t *testing.T) { testExecStdin(t, box) })
	t.Run("signals", func(t *testing.T) { testExecSignals(t, box) })
	t.Run("detached", func(t *testing.T) { testExecDetached(t, box) })
	t.Run("terminal", func(t *testing.T) { testExecTerminal(t, box) })
	t.Run("paste", func(t *testing.T) { testExecPaste(t, box) })
	t.Run("twenty at once", func(t *testing.T) { testExecAtOnce(t, box) })
	t.Run("two hundred in a row", func(t *testing.T) {
		for i := range 200 {
			if r := fcvm(t, "exec", box, "true"); r != (result{}) {
				t.Fatalf("number %d: %+v", i, r)
			}
		}
	})
	fcvm(t, "exec", "--guest", box, "sh", "-c", "ls /run/fcvm/exec; ! pidof crun").want(t, 0, "")
}

func testExecStreams(t *testing.T, box string) {
	r := fcvm(t, "exec", box, "sh", "-c", "echo out; echo err >&2; exit 7")
	r.want(t, 7, "out\n")
	if r.stderr != "err\n" {
		t.Errorf("stderr %q, want %q", r.stderr, "err\n")
	}
	fcvm(t, "exec", box, "sh", "-c", "kill -KILL $$").want(t, 137, "")
	fcvm(t, "exec", box, "seq", "1", "100000").want(t, 0, numbers(100000))
}

func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

func testExecSurroundings(t *testing.T, box string) {
	id := "uid=1000(user) gid=1000(user)\n"
	fcvm(t, "exec", "-u", "user", box, "sh", "-c", "id; echo $HOME").want(t, 0, id+"/home/user\n")
	fcvm(t, "exec", "-u", "1000:adm", box, "id").want(t, 0, "uid=1000(user) gid=4(adm)\n")
	fcvm(t, "exec", "-u", "4321", box, "sh", "-c", "id; echo $HOME").want(t, 0, "uid=4321 gid=0(root)\n/\n")
	fcvm(t, "exec", "-e", "A=b c\nd", "-e", "TERM=vt52", "-w", "/var/tmp", box, "sh", "-c", `echo "$A $TERM $HOME"; pwd`).
		want(t, 0, "b c\nd vt52 /root\n/var/tmp\n")
	fcvmIn(t, strings.NewReader("FROM=file\nOVER=file\n"), "exec", "--env-file", "/dev/stdin", "-e", "OVER=flag", box, "sh", "-c", `echo "$FROM $OVER"`).want(t, 0, "file flag\n")
	// The same processes, root and host name as the container's first process has.
	fcvm(t, "exec", box, "sh", "-c", `read x </proc/1/cmdline; echo "$x" | head -c 2; [ / -ef /proc/1/root/ ] && hostname`).
		want(t, 0, "sh"+box+"\n")
	// The cgroup namespace shows a path out of it to whoever is in another group.
	fcvm(t, "exec", box, "sh", "-c", "cmp /proc/self/cgroup /proc/1/cgroup && grep -c ^0::/$ /proc/self/cgroup").want(t, 0, "1\n")
	caps := func(flags ...string) string {
		r := fcvm(t, append(append([]string{"exec"}, flags...), box, "grep", "CapEff", "/proc/self/status")...)
		return strings.TrimSpace(strings.TrimPrefix(r.stdout, "CapEff:"))
	}
	own := fcvm(t, "exec", box, "grep", "CapEff", "/proc/1/status").stdout
	if got := caps(); !strings.Contains(own, got) || got == "" {
		t.Errorf("capabilities %s, the container has %s", got, own)
	}
	if got := caps("-u", "user"); got != "0000000000000000" {
		t.Errorf("capabilities of a user: %s", got)
	}
	if got := caps("--privileged"); !strings.HasSuffix(got, "ffffffff") {
		t.Errorf("capabilities with --privileged: %s", got)
	}
	fcvm(t, "exec", "-u", "user", box, "sh", "-c", "grep Seccomp: /proc/self/status; cat /root/x").want(t, 1, "Seccomp:\t2\n")
	fcvm(t, "exec", "--guest", box, "cat", "/etc/hostname").want(t, 0, box+"\n")
}

func testExecFailures(t *testing.T, box string) {
	for _, how := range []string{"-i", "-t", "-d"} {
		fcvm(t, "exec", how, box, "no-such-command").wantError(t, 127, "fcvm: run", "no-such-command", "not found")
		fcvm(t, "exec", how, box, "/etc/passwd").wantError(t, 126, "/etc/passwd", "Permission denied")
	}
	fcvm(t, "exec", "-w", "/no/dir", box, "true").wantError(t, 126, "/no/dir")
	fcvm(t, "exec", "-w", "dir", box, "true").wantError(t, 125, "not absolute")
	fcvm(t, "exec", "-u", "nosuchuser", box, "true").wantError(t, 125, "nosuchuser", "/etc/passwd")
	fcvm(t, "exec", "-it", box, "true").wantError(t, 125, "not a TTY")
}

func testExecStdin(t *testing.T, box string) {
	const size = 16 << 20
	in, out := sha256.New(), sha256.New()
	cmd := command(t.Context(), "exec", "-i", box, "cat")
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.Reader, size), in)
	var errs syncBuffer
	n := &countingWriter{w: out}
	cmd.Stdout, cmd.Stderr = n, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v; stderr:\n%s", err, errs.String())
	}
	if n.n != size || string(in.Sum(nil)) != string(out.Sum(nil)) {
		t.Errorf("%d bytes came back with the sum %x, want %d and %x", n.n, out.Sum(nil), size, in.Sum(nil))
	}
	fcvmIn(t, strings.NewReader("not asked for"), "exec", box, "cat").want(t, 0, "")
}

func testExecSignals(t *testing.T, box string) {
	script := `trap "echo got it; exit 5" TERM INT; echo ready; while :; do sleep 0.1; done`
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p := start(t, "exec", box, "sh", "-c", script)
		p.waitOutput(t, "ready")
		if err := p.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(t); code != 5 || p.out.String() != "ready\ngot it\n" {
			t.Errorf("%s: exit code %d, stdout %q; want 5 and the trap's output once", sig, code, p.out.String())
		}
	}
	// A command whose fcvm is gone is hung up, and what it has started too.
	p := start(t, "exec", box, "sh", "-c", "echo ready; sleep 4711; true")
	p.waitOutput(t, "ready")
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone(t, box, "sleep 4711")
	// The second signal leaves a command that takes no notice, and hangs it up.
	p = start(t, "exec", box, "sh", "-c", `trap "" INT TERM; echo ready; sleep 4713; true`)
	p.waitOutput(t, "ready")
	for range 2 {
		if err := p.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	if code := p.wait(t); code != 130 || !strings.Contains(p.errs.String(), "hung up") {
		t.Errorf("two signals: exit code %d, stderr %q; want 130", code, p.errs.String())
	}
	gone(t, box, "sleep 4713")
}

// gone waits until no process of the container has this command line.
func gone(t *testing.T, box, args string) {
	t.Helper()
	eventually(t, "end of "+args, func() bool {
		return !strings.Contains(fcvm(t, "exec", box, "ps", "-o", "args").stdout, args)
	})
}

func testExecDetached(t *testing.T, box string) {
	for _, flags := range []string{"-d", "-dt"} {
		mark := "/tmp/mark" + flags
		fcvm(t, "exec", flags, box, "sh", "-c", "seq 1 20000; until [ -e /tmp/go ]; do sleep 0.1; done; echo done >"+mark).want(t, 0, "")
		if r := fcvm(t, "exec", box, "cat", mark); r.code == 0 {
			t.Errorf("%s: it has not waited: %q", flags, r.stdout)
		}
		fcvm(t, "exec", box, "touch", "/tmp/go")
		eventually(t, "the command's mark", func() bool { return fcvm(t, "exec", box, "cat", mark).stdout == "done\n" })
		fcvm(t, "exec", box, "rm", "/tmp/go")
	}
}

// screen is a terminal with a command of fcvm's on it.
type screen struct {
	cmd  *exec.Cmd
	term io.ReadWriteCloser
	text *syncBuffer
}

func onScreen(t *testing.T, cmd *exec.Cmd) (*screen, func(rows, cols uint16)) {
	t.Helper()
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{cmd: cmd, term: term, text: new(syncBuffer)}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = term.Close() })
	go func() { _, _ = io.Copy(s.text, term) }()
	return s, func(rows, cols uint16) {
		if err := pty.Setsize(term, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *screen) see(t *testing.T, text string) {
	t.Helper()
	deadline := time.Now().Add(runTimeout)
	for !strings.Contains(s.text.String(), text) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q on the screen:\n%q", text, s.text.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *screen) typing(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.term, text); err != nil {
		t.Fatal(err)
	}
}

func (s *screen) wait(t *testing.T, code int) {
	t.Helper()
	err := s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d (%v), want %d; screen:\n%q", got, err, code, s.text.String())
	}
}

func testExecTerminal(t *testing.T, box string) {
	s, resize := onScreen(t, command(t.Context(), "exec", "-it", box, "sh"))
	// What is looked for is never what is typed: that is on the screen as well.
	s.typing(t, "stty size; tty\r")
	s.see(t, "33 77\r\n/dev/pts/")
	s.typing(t, "sleep 100\r")
	time.Sleep(time.Second)
	s.typing(t, "\x03") // Ctrl-C
	s.typing(t, "echo code $?\r")
	s.see(t, "code 130\r\n")
	s.typing(t, "sleep 101\r")
	time.Sleep(time.Second)
	s.typing(t, "\x1a") // Ctrl-Z
	s.see(t, "Stopped")
	s.typing(t, "kill -9 %1; cat; echo end of $((2+2)) input\r")
	time.Sleep(time.Second)
	s.typing(t, "line\r\x04") // Ctrl-D
	s.see(t, "end of 4 input")
	resize(44, 99)
	s.typing(t, "until [ \"$(stty size)\" = '44 99' ]; do sleep 0.1; done; echo si\"\"zed\r")
	s.see(t, "sized")
	s.typing(t, "printf '\\033[31mr%s\\033[0m\\n' ed; tty >/tmp/tty; exit 4\r")
	s.see(t, "\x1b[31mred\x1b[0m")
	s.wait(t, 4)
	// A terminal that goes away takes its command along.
	s, _ = onScreen(t, command(t.Context(), "exec", "-it", box, "sh", "-c", "echo ready; sleep 4712; true"))
	s.see(t, "ready")
	_ = s.cmd.Process.Kill()
	gone(t, box, "sleep 4712")
}

func testExecPaste(t *testing.T, box string) {
	const lines = 1300 // of 80 characters
	s, _ := onScreen(t, command(t.Context(), "exec", "-it", box, "sh", "-c", "stty -echo; echo ready; cat >/tmp/paste; echo pasted"))
	s.see(t, "ready")
	text := strings.Repeat(strings.Repeat("paste ", 13)+"\n", lines)
	s.typing(t, text+"\x04")
	s.see(t, "pasted")
	s.wait(t, 0)
	fcvm(t, "exec", box, "sha256sum", "/tmp/paste").want(t, 0, fmt.Sprintf("%x  /tmp/paste\n", sha256.Sum256([]byte(text))))
}

func testExecAtOnce(t *testing.T, box string) {
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			in := strings.Repeat(fmt.Sprintf("line %d\n", i), 5000)
			cmd := command(t.Context(), "exec", "-i", box, "sh", "-c", fmt.Sprintf("cat; echo %d >&2; exit %d", i, i))
			var out, errs syncBuffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errs
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != i || out.String() != in || errs.String() != fmt.Sprintln(i) {
				t.Errorf("command %d: exit code %d, %d bytes of %d, stderr %q", i, code, len(out.String()), len(in), errs.String())
			}
		})
	}
	all.Wait()
}
