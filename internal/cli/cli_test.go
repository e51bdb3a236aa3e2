package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

// host is a process that a test plays: its own data directory, environment
// and streams.
type host struct {
	t      *testing.T
	data   string
	env    map[string]string
	stdin  io.Reader
	stdout io.Writer // nil: captured
	stderr io.Writer
	run    func(context.Context, supervisor.Deps, supervisor.Options) (supervisor.Result, error)
}

func newHost(t *testing.T) *host {
	t.Helper()
	return &host{t: t, data: filepath.Join(t.TempDir(), "data"), env: map[string]string{}, stdin: strings.NewReader("")}
}

// fcvm runs one command line in this process.
func (h *host) fcvm(args ...string) (code int, stdout, stderr string) {
	h.t.Helper()
	var out, errs bytes.Buffer
	sys := System{
		Args: append([]string{"--data-dir", h.data}, args...), Stdin: h.stdin, Stdout: &out, Stderr: &errs, UID: os.Getuid(),
		LookupEnv: func(k string) (string, bool) { v, ok := h.env[k]; return v, ok },
	}
	if h.stdout != nil {
		sys.Stdout = h.stdout
	}
	if h.stderr != nil {
		sys.Stderr = h.stderr
	}
	a := newApp(sys)
	a.supervise = func(ctx context.Context, d supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		if h.run == nil {
			h.t.Errorf("%q got as far as starting a VM", args)
			return supervisor.Result{}, nil
		}
		return h.run(ctx, d, o)
	}
	code = a.main(h.t.Context())
	return code, out.String(), errs.String()
}

// ok runs a command line that must succeed silently, and returns its stdout.
func (h *host) ok(args ...string) string {
	h.t.Helper()
	code, out, errs := h.fcvm(args...)
	if code != 0 || errs != "" {
		h.t.Fatalf("fcvm %q: exit code %d, stderr %q", args, code, errs)
	}
	return out
}

func (h *host) layout() paths.Layout { return paths.Layout{Data: h.data} }

// create makes a VM whose supervisor is this process.
func (h *host) create(name string, spec vm.Spec) *store.VM {
	h.t.Helper()
	s, err := store.Open(h.layout())
	if err != nil {
		h.t.Fatal(err)
	}
	v, err := s.Create(name, spec)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = v.Close() })
	return v
}

// running makes a VM that counts as running.
func (h *host) running(name string) *store.VM {
	h.t.Helper()
	v := h.create(name, defaultSpec())
	for _, s := range []vm.Status{vm.StatusStarting, vm.StatusRunning} {
		if err := v.Move(s, "test"); err != nil {
			h.t.Fatal(err)
		}
	}
	return v
}

// end lets a VM exit.
func (h *host) end(v *store.VM, code int) {
	h.t.Helper()
	for _, s := range []vm.Status{vm.StatusStarting, vm.StatusRunning, vm.StatusExited} {
		if err := v.Move(s, "test"); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := v.Update(func(r *vm.Record) error { r.ExitCode = &code; return nil }); err != nil {
		h.t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		h.t.Fatal(err)
	}
}
