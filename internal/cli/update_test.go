package cli

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/store"
)

// fakeSupervisor answers commands for a VM of this process.
type fakeSupervisor struct {
	control.VM // what is not here is not asked for
	mu         sync.Mutex
	balloon    []int
	stop       func() error
	snapshot   func(name string) error
}

func (f *fakeSupervisor) Update(_ context.Context, u control.UpdateRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.balloon = append(f.balloon, *u.BalloonMiB)
	return nil
}

func (f *fakeSupervisor) Stop(context.Context, time.Duration) error { return f.stop() }

func (f *fakeSupervisor) Snapshot(_ context.Context, q control.SnapshotRequest) (control.Snapshotted, error) {
	return control.Snapshotted{Name: q.Name}, f.snapshot(q.Name)
}

func (f *fakeSupervisor) DialAgent(context.Context) (net.Conn, error) { return nil, net.ErrClosed }

// supervise serves a VM's control socket.
func (h *host) supervise(v *store.VM, f *fakeSupervisor) {
	h.t.Helper()
	s, err := control.Listen(h.socket(v), f)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = s.Close(context.Background()) })
}

// socket is where a VM's supervisor listens.
func (h *host) socket(v *store.VM) string {
	h.t.Helper()
	if h.env["FCVM_RUNTIME_DIR"] == "" {
		h.env["FCVM_RUNTIME_DIR"] = h.t.TempDir()
	}
	path, err := paths.Layout{Runtime: h.env["FCVM_RUNTIME_DIR"]}.ControlSocket(v.Record().ID)
	if err != nil {
		h.t.Fatal(err)
	}
	return path
}

func TestUpdateAsksEachSupervisor(t *testing.T) {
	h := newHost(t)
	f := &fakeSupervisor{}
	h.supervise(h.running("a"), f)
	h.supervise(h.running("b"), f)
	if out := h.ok("update", "--balloon", "0.25g", "a", "b"); out != "a\nb\n" {
		t.Errorf("stdout %q", out)
	}
	h.ok("update", "--balloon", "0", "a")
	if len(f.balloon) != 3 || f.balloon[0] != 256 || f.balloon[2] != 0 {
		t.Errorf("asked for %v MiB", f.balloon)
	}
	h.end(h.create("ended", defaultSpec()), 0)
	for args, want := range map[string]string{
		"update a":                    "nothing to update: give --balloon",
		"update --balloon 1":          "no VM given",
		"update --balloon -5 a":       "512, 512m, 2g",
		"update --balloon 1k a":       "512, 512m, 2g",
		"update --balloon 1 nope":     `no such VM: "nope"`,
		"update --balloon 1 ended":    "update ended: VM is not running: ended is exited",
		"update --balloon 1 ended a ": "VM is not running",
	} {
		code, _, errs := h.fcvm(strings.Fields(args)...)
		if code != exitFailed || !strings.Contains(errs, want) {
			t.Errorf("fcvm %s: code %d, stderr %q; want %q", args, code, errs, want)
		}
	}
}
