package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestStreamsAndExitCode(t *testing.T) {
	r := run(t, nil, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
	r.want(t, 7, "out\n")
	if r.stderr != "err\n" {
		t.Errorf("stderr %q, want %q", r.stderr, "err\n")
	}
}

func TestOutputIsComplete(t *testing.T) {
	const n = 1_000_000
	var want strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&want, i)
	}
	r := run(t, nil, "busybox", "seq", "1", fmt.Sprint(n))
	if r.code != 0 || r.stdout != want.String() {
		t.Errorf("exit code %d, %d bytes of output, want %d; stderr:\n%s", r.code, len(r.stdout), want.Len(), r.stderr)
	}
}

func TestStdinComesBack(t *testing.T) {
	const size = 100 << 20
	in, out := sha256.New(), sha256.New()
	cmd := command(t.Context(), runArgs(t, []string{"-i"}, "busybox", "cat")...)
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
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func TestCommandsThatCannotRun(t *testing.T) {
	run(t, nil, "busybox", "no-such-command").wantError(t, 127, "no-such-command", "not found")
	run(t, nil, "busybox", "/etc/passwd").wantError(t, 126, "/etc/passwd")
}

func TestSignalReachesContainer(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			p := start(t, runArgs(t, nil, "busybox", "sh", "-c",
				`trap "echo got it; exit 5" TERM INT; echo ready; while :; do sleep 0.1; done`)...)
			p.waitOutput(t, "ready")
			if err := p.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code := p.wait(t); code != 5 || !strings.Contains(p.out.String(), "got it") {
				t.Errorf("exit code %d, stdout %q; want 5 and the trap's output", code, p.out.String())
			}
		})
	}
}

func TestSecondSignalKillsVM(t *testing.T) {
	p := start(t, runArgs(t, nil, "busybox", "sh", "-c", `trap "" TERM INT; echo ready; while :; do sleep 0.1; done`)...)
	p.waitOutput(t, "ready")
	for range 2 {
		if err := p.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	if code := p.wait(t); code != 137 {
		t.Errorf("exit code %d, want 137; stderr:\n%s", code, p.errs.String())
	}
}

func TestSignalDuringStart(t *testing.T) {
	p := start(t, runArgs(t, []string{"--name", "early"}, "busybox", "sleep", "1000")...)
	eventually(t, "record of the VM", func() bool { return fcvm(t, "inspect", "early").code == 0 })
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 143 {
		t.Errorf("exit code %d, want 143; stderr:\n%s", code, p.errs.String())
	}
}

func TestInitSystemd(t *testing.T) {
	run(t, []string{"--init", "systemd"}, "busybox", "echo", "hello").want(t, 0, "hello\n")
}
