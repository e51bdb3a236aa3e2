package memserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/firecracker"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest"
)

// apiName is the name of Firecracker's socket in a VM's directory.
const apiName = "firecracker.sock"

// fcSnapshot is a snapshot of a guest that has answered.
type fcSnapshot struct {
	cfg           vmm.Config
	memory, state string
}

// ask sends one request to the API of a Firecracker in dir.
func askFirecracker(ctx context.Context, done <-chan struct{}, dir, method, path string, body any) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return vmm.DialSoon(ctx, done, dir, apiName)
	}}}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://fc"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s", method, path, b)
	}
	return err
}

// takeFirecracker boots a guest and takes a snapshot of it; it skips the test
// where that cannot be done.
func takeFirecracker(t *testing.T) fcSnapshot {
	t.Helper()
	d := firecracker.New(os.Getenv("FCVM_FIRECRACKER"), kvm.Probe, nil)
	if a := d.Probe(t.Context()); !a.Usable {
		t.Skip("no Firecracker here (try the lab): " + a.Reason)
	}
	g := vmmtest.FindGuest(t)
	dir := t.TempDir()
	s := fcSnapshot{
		memory: filepath.Join(dir, "memory"), state: filepath.Join(dir, "state"),
		cfg: vmm.Config{
			Dir: dir, Kernel: paths.KernelName, Initrd: paths.InitrdName, CPUs: 2, MemoryMiB: 256,
			Cmdline: "quiet " + agentapi.ParamChannel + "=vsock",
			Disks:   []vmm.Disk{{ID: "root", Path: paths.RootName, ReadOnly: true}},
		},
	}
	for name, target := range map[string]string{paths.KernelName: g.Kernel, paths.InitrdName: g.Initrd} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, paths.RootName), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []**os.File{&s.cfg.Console, &s.cfg.VMMLog} {
		var err error
		if *f, err = os.CreateTemp(dir, "log"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*f).Close() })
	}
	m, err := d.Start(t.Context(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	agent := agentclient.New(m.Dial)
	defer agent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := agent.WaitAgent(ctx); err != nil {
		t.Fatalf("%v\n%v", err, vmm.Tail(s.cfg.Console.Name(), 15))
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	err = askFirecracker(ctx, m.Done(), dir, http.MethodPut, "/snapshot/create",
		map[string]string{"snapshot_type": "Full", "snapshot_path": s.state, "mem_file_path": s.memory})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// restore starts a VM from the snapshot and returns how long it took from the
// load to the guest's first answer. use is given the process before that. The
// lab's emulation loses a guest now and then: the time of one that does not
// answer is 0.
func (s fcSnapshot) restore(t *testing.T, backend, path string, use func(pid int)) (first time.Duration, stop func()) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(s.cfg.Dir, paths.RootName), filepath.Join(dir, paths.RootName)); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("firecracker")
	if p := os.Getenv("FCVM_FIRECRACKER"); p != "" {
		program, err = p, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--api-sock", apiName)
	cmd.Dir = dir
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	stop = func() { _ = cmd.Process.Kill(); <-done }
	t.Cleanup(stop)
	use(cmd.Process.Pid)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	start := time.Now()
	err = askFirecracker(ctx, done, dir, http.MethodPut, "/snapshot/load", map[string]any{
		"snapshot_path": s.state, "mem_backend": map[string]string{"backend_type": backend, "backend_path": path}, "resume_vm": true,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	agent := agentclient.New(func(ctx context.Context) (net.Conn, error) {
		c, err := vmm.DialSoon(ctx, done, dir, paths.VsockName)
		if err != nil {
			return nil, err
		}
		if _, err = fmt.Fprintf(c, "CONNECT %d\n", vmm.AgentPort); err == nil {
			b := make([]byte, 1)
			for err == nil && b[0] != '\n' {
				_, err = io.ReadFull(c, b)
			}
		}
		return c, err
	})
	defer agent.Close()
	if _, err := agent.WaitAgent(ctx); err != nil {
		t.Logf("%s: %v", backend, err)
		return 0, stop
	}
	return time.Since(start), stop
}

// Firecracker's own handshake, faults and end; and how much sooner the guest
// answers with its working set ahead.
func TestFirecracker(t *testing.T) {
	snap := takeFirecracker(t)
	o := Options{Snapshot: "snap", Memory: snap.memory, Keep: true, Prefetch: true}
	o.Socket, o.WorkingSet = filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "set")
	s := serve(t, o)
	snap.record(t, s)

	kinds := []string{"file", "without", "prefetch"}
	servers := map[string]*service{"prefetch": s}
	o.Prefetch, o.Socket = false, filepath.Join(t.TempDir(), "s")
	servers["without"] = serve(t, o)
	const rounds = 3
	times := map[string][]time.Duration{}
	for try := range 4 * rounds {
		for _, kind := range kinds {
			if len(times[kind]) == rounds {
				continue
			}
			backend, path := "File", snap.memory
			if s := servers[kind]; s != nil {
				backend, path = "Uffd", s.o.Socket
			}
			took, stop := snap.restore(t, backend, path, func(int) {})
			if took > 0 {
				times[kind] = append(times[kind], took)
			}
			stop()
		}
		if try == 4*rounds-1 {
			t.Fatalf("too many guests were lost: %v", times)
		}
		if !slices.ContainsFunc(kinds, func(k string) bool { return len(times[k]) < rounds }) {
			break
		}
	}
	last := map[string]VMStats{}
	median := func(kind string) time.Duration { slices.Sort(times[kind]); return times[kind][rounds/2] }
	for _, kind := range kinds {
		t.Logf("%-8s median %s of %v", kind, median(kind), times[kind])
		if s := servers[kind]; s != nil {
			until(t, "all have left", func() bool { return len(s.Stats().VMs) == 0 })
			e := s.Stats().Ended
			last[kind] = e[len(e)-1]
			t.Logf("         %v", last[kind])
		}
	}
	if p, w := last["prefetch"], last["without"]; w.Pushed != 0 || p.Pushed == 0 || p.Faults > w.Faults/2 {
		t.Errorf("with the working set ahead %d faults, without %d", p.Faults, w.Faults)
	}
	t.Logf("with the working set ahead: %.2f of the time without", float64(median("prefetch"))/float64(median("without")))
}

// record has the server record the start of a VM.
func (s fcSnapshot) record(t *testing.T, on *service) {
	t.Helper()
	for range 5 {
		l := on.link("first")
		took, stop := s.restore(t, "Uffd", on.o.Socket, func(pid int) {
			if err := l.Attach(pid); err != nil {
				t.Fatal(err)
			}
		})
		if took > 0 {
			if err := l.Ready(); err != nil {
				t.Fatal(err)
			}
			until(t, "the working set is there", func() bool { return on.Stats().WorkingSet > 0 })
			t.Logf("recorded: first answer after %s; %v", took, on.Stats().VMs[0])
		}
		stop()
		_ = l.Close()
		until(t, "it has left", func() bool { return len(on.Stats().VMs) == 0 })
		if took > 0 {
			return
		}
	}
	t.Fatal("no guest has answered")
}
