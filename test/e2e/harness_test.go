package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/test/images"
)

// result of one fcvm command.
type result struct {
	stdout, stderr string
	code           int
}

// fcvm runs a command to its end.
func fcvm(t *testing.T, args ...string) result {
	t.Helper()
	return fcvmIn(t, nil, args...)
}

func fcvmIn(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	return fcvmWithin(t, runTimeout, stdin, args...)
}

func fcvmWithin(t *testing.T, limit time.Duration, stdin io.Reader, args ...string) result {
	t.Helper()
	// A test's own context is over when its clean-up runs.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	cmd := command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("fcvm %q did not end within %s; stderr:\n%s", args, limit, errs.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("fcvm %q: %v", args, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// run is `fcvm run` of an image made by package images, on the driver under
// test. Flags come before the image, which is followed by the command.
func run(t *testing.T, flags []string, image string, cmd ...string) result {
	t.Helper()
	return fcvm(t, runArgs(t, flags, image, cmd...)...)
}

func runArgs(t testing.TB, flags []string, image string, cmd ...string) []string {
	t.Helper()
	args := slices.Concat([]string{"run", "--vmm", env.driver}, flags, []string{archive(t, image)})
	return append(args, cmd...)
}

// archive returns the reference of an OCI archive of an image.
func archive(t testing.TB, name string) string {
	t.Helper()
	path, err := images.OCIArchive(t.Context(), env.images, name)
	if err != nil {
		t.Fatalf("make the image %s: %v", name, err)
	}
	return "oci-archive:" + path
}

// want fails the test unless the command ended as it should.
func (r result) want(t *testing.T, code int, stdout string) {
	t.Helper()
	if r.code != code || r.stdout != stdout {
		t.Errorf("exit code %d, stdout %.500q; want %d, %.500q; stderr:\n%s", r.code, r.stdout, code, stdout, r.stderr)
	}
}

// wantError fails the test unless fcvm failed and said so in these words.
func (r result) wantError(t *testing.T, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d; stderr:\n%s", r.code, code, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("stderr has no %q:\n%s", w, r.stderr)
		}
	}
	for _, w := range []string{"goroutine ", "panic:", "exit status"} {
		if strings.Contains(r.stderr, w) {
			t.Errorf("stderr has %q:\n%s", w, r.stderr)
		}
	}
}

// vmProcess is a foreground `fcvm run` that is under way.
type vmProcess struct {
	*exec.Cmd
	out, errs *syncBuffer
	done      chan error
}

// start starts fcvm and leaves it running; the test's end kills it.
func start(t testing.TB, args ...string) *vmProcess {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith is start with a standard input.
func startWith(t testing.TB, stdin io.Reader, args ...string) *vmProcess {
	t.Helper()
	p := &vmProcess{Cmd: command(context.Background(), args...), out: new(syncBuffer), errs: new(syncBuffer), done: make(chan error, 1)}
	p.Stdin, p.Stdout, p.Stderr = stdin, p.out, p.errs
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.Wait() }()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			t.Errorf("fcvm %q did not end after SIGKILL", args)
		}
	})
	return p
}

// eventually waits for something of a VM that is to go on meanwhile.
func (p *vmProcess) eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(runTimeout)
	for {
		var ended bool
		select {
		case err := <-p.done:
			p.done <- err
			ended = true
		default:
		}
		if is() {
			return
		}
		if late := time.Now().After(deadline); ended || late {
			t.Fatalf("no %s (ended: %t, not within %s: %t); stdout: %.2000q; stderr:\n%s\n%s", what, ended, runTimeout, late, p.out.String(), p.errs.String(), consoles())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// waitOutput waits until stdout has the text.
func (p *vmProcess) waitOutput(t testing.TB, text string) {
	t.Helper()
	p.eventually(t, fmt.Sprintf("%q on stdout", text), func() bool { return strings.Contains(p.out.String(), text) })
}

// wait waits for the end and returns the exit code.
func (p *vmProcess) wait(t testing.TB) int {
	t.Helper()
	return p.waitFor(t, runTimeout)
}

// waitFor is wait for what may take longer.
func (p *vmProcess) waitFor(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		return p.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("fcvm did not end within %s; stderr:\n%s", limit, p.errs.String())
		return -1
	}
}

// eventually waits for something that takes as long as a VM takes.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(runTimeout)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %s\n%s", what, runTimeout, consoles())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// consoles are the last lines on the consoles of all VMs that there are: where a
// guest hangs, they are all that is known of it.
func consoles() string {
	const most = 2000 // bytes of each
	var all strings.Builder
	layout := paths.Layout{Data: env.data}
	vms, _ := os.ReadDir(layout.VMs()) // a hint
	for _, vm := range vms {
		text, err := os.ReadFile(layout.VM(vm.Name()).Console())
		if err == nil {
			fmt.Fprintf(&all, "console of %s:\n%s\n", vm.Name(), text[max(0, len(text)-most):])
		}
	}
	return all.String()
}

func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w in %.200q", err, b)
	}
	return nil
}
