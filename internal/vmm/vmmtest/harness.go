package vmmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
)

// patience bounds what takes a moment, on a busy host.
const patience = 30 * time.Second

// config is a machine's configuration with everything in place in a new
// directory: two disks, the first read-only, each with its id as its head.
func (s *suite) config(t *testing.T) vmm.Config {
	t.Helper()
	dir := t.TempDir()
	link(t, s.guest.Kernel, filepath.Join(dir, paths.KernelName))
	link(t, s.guest.Initrd, filepath.Join(dir, paths.InitrdName))
	cfg := vmm.Config{
		Dir: dir, Kernel: paths.KernelName, Initrd: paths.InitrdName, CPUs: 2, MemoryMiB: 256,
		Disks:   []vmm.Disk{{ID: "root", Path: paths.RootName, ReadOnly: true}, {ID: "scratch", Path: paths.ScratchName}},
		Cmdline: "quiet " + agentapi.ParamChannel + "=serial",
		Console: create(t, filepath.Join(dir, "console.log")), VMMLog: create(t, filepath.Join(dir, "vmm.log")),
	}
	if s.caps.AgentVsock {
		cfg.Cmdline = "quiet " + agentapi.ParamChannel + "=vsock"
	}
	for _, d := range cfg.Disks {
		head := make([]byte, 1<<20)
		copy(head, d.ID)
		if err := os.WriteFile(filepath.Join(dir, d.Path), head, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func link(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Symlink(from, to); err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// running is a machine with clients of the agent and of the test's own paths.
type running struct {
	vmm.Machine
	cfg   vmm.Config
	agent *agentclient.Client
	http  *http.Client
}

// start starts a machine and makes sure that the test leaves nothing of it.
func (s *suite) start(t *testing.T, cfg vmm.Config) *running {
	t.Helper()
	m, err := s.driver.Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start: %v\n%s", err, tails(cfg))
	}
	return s.adopt(t, m, cfg)
}

// adopt makes clients for a machine.
func (s *suite) adopt(t *testing.T, m vmm.Machine, cfg vmm.Config) *running {
	t.Helper()
	r := &running{
		Machine: m, cfg: cfg, agent: agentclient.New(m.Dial),
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return m.Dial(ctx) },
		}},
	}
	t.Cleanup(func() { r.close(t) })
	return r
}

// boot starts a machine and waits for its agent.
func (s *suite) boot(t *testing.T, cfg vmm.Config) *running {
	t.Helper()
	began := time.Now()
	r := s.start(t, cfg)
	started := time.Since(began)
	ctx, cancel := context.WithTimeout(t.Context(), s.caps.BootTimeout)
	defer cancel()
	go func() { // a machine that ends will not answer any more
		select {
		case <-r.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	st, err := r.agent.WaitAgent(ctx)
	if err != nil {
		t.Fatalf("wait for the agent: %v\n%s", err, tails(cfg))
	}
	t.Logf("started in %s, agent after %s, at %.2f s of the guest's time", started.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), st.Uptime)
	return r
}

// close is what every machine's user does in the end.
func (r *running) close(t *testing.T) {
	t.Helper()
	r.agent.Close()
	r.http.CloseIdleConnections()
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	select {
	case <-r.Done():
	default:
		t.Error("Done is open after Close")
	}
	if err := syscall.Kill(r.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d after Close: %v", r.PID(), err)
	}
	checkDir(t, r.cfg.Dir)
}

// waitEnd waits until the VMM has ended by itself.
func (r *running) waitEnd(t *testing.T, limit time.Duration) vmm.Exit {
	t.Helper()
	select {
	case <-r.Done():
		return r.Exit()
	case <-time.After(limit):
		t.Fatalf("the VMM has not ended after %s\n%s", limit, tails(r.cfg))
		panic("unreachable")
	}
}

// call asks one of the test's own paths; in and out may be nil.
func (r *running) call(ctx context.Context, method, path string, in []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, bytes.NewReader(in))
	if err != nil {
		return err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, agentapi.MaxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.200s", method, path, resp.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

func (r *running) mustCall(t *testing.T, method, path string, in []byte, out any) {
	t.Helper()
	r.mustCallWithin(t, patience, method, path, in, out)
}

func (r *running) mustCallWithin(t *testing.T, limit time.Duration, method, path string, in []byte, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := r.call(ctx, method, path, in, out); err != nil {
		t.Fatalf("%v\n%s", err, tails(r.cfg))
	}
}

// tails is what console and log end with.
func tails(cfg vmm.Config) string {
	const lines = 15
	return "console:\n  " + strings.Join(vmm.Tail(cfg.Console.Name(), lines), "\n  ") +
		"\nVMM's log:\n  " + strings.Join(vmm.Tail(cfg.VMMLog.Name(), lines), "\n  ")
}

// checkDir looks for sockets that were left.
func checkDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSocket != 0 {
			t.Errorf("left behind: socket %s", e.Name())
		}
	}
}

// openFiles counts what this process has open, by what it is. Go's own
// descriptors (its poller, those of processes) do not count.
func openFiles(t *testing.T) map[string]int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") {
			continue
		}
		kind, _, _ := strings.Cut(target, ":[") // "socket:[123]": the number is new each time
		files[kind]++
	}
	return files
}

// checkLeaks looks at what a test has left open after it has cleaned up.
func checkLeaks(t *testing.T, before map[string]int) {
	t.Helper()
	leaked := func() (left []string) {
		for kind, n := range openFiles(t) {
			if n > before[kind] && !strings.HasPrefix(kind, "/proc/") {
				left = append(left, fmt.Sprintf("%d × %s", n-before[kind], kind))
			}
		}
		return left
	}
	deadline := time.Now().Add(5 * time.Second)
	left := leaked()
	for len(left) > 0 && time.Now().Before(deadline) { // connections close in the background
		time.Sleep(10 * time.Millisecond)
		left = leaked()
	}
	if len(left) > 0 {
		t.Errorf("left open: %s", strings.Join(left, ", "))
	}
}
