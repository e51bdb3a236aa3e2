package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// served is what `fcvm memory-server stats` says.
type served struct {
	PID        int  `json:"pid"`
	WorkingSet int  `json:"working_set_pages"`
	Recording  bool `json:"recording"`
	VMs        []struct {
		VM     string `json:"vm"`
		Faults int    `json:"faults"`
		Pushed int    `json:"pushed_pages"`
	} `json:"vms"`
}

func servedBy(t testing.TB, snapshot string) served {
	t.Helper()
	var s served
	if err := json.Unmarshal([]byte(must(t, "memory-server", "stats", "--format", "json", snapshot)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// Clones can take their memory from a server: the first one's start is
// recorded, the next one has its pages ahead. When the server is killed, they
// cannot go on, and say why.
func TestClonesFromAMemoryServer(t *testing.T) {
	detach(t, []string{"--name", "original", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	snapshotOf(t, "original", "warm")
	t.Cleanup(func() { // nothing was made for it
		if r := fcvm(t, "ls", "-a", "--format", "{{.Name}}"); strings.Contains(r.stdout, "refused") {
			t.Errorf("a clone that was refused is left:\n%s", r.stdout)
		}
	})
	if env.driver != "firecracker" {
		fcvm(t, "memory-server", "warm").wantError(t, 125, "takes its memory from a file only")
		fcvm(t, "clone", "-d", "--name", "refused", "--snapshot", "warm", "--memory", "server").wantError(t, 125, "--memory file")
		t.Skip("the rest needs Firecracker")
	}
	fcvm(t, "clone", "-d", "--name", "refused", "--snapshot", "warm", "--memory", "server").wantError(t, 125, "none runs for snapshot warm", "fcvm memory-server -d warm")
	fcvm(t, "memory-server", "stop", "warm").wantError(t, 125, "nobody serves")
	if r := fcvm(t, "memory-server", "-d", "--keep", "warm"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	fcvm(t, "memory-server", "stop", "warm").want(t, 0, "")
	r := fcvm(t, "memory-server", "-d", "--keep", "warm")
	if r.code != 0 || !strings.HasSuffix(r.stdout, ".sock\n") {
		t.Fatalf("exit code %d, stdout %q; stderr:\n%s", r.code, r.stdout, r.stderr)
	}
	server := servedBy(t, "warm").PID
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGKILL) })
	fcvm(t, "snapshot", "rm", "warm").wantError(t, 125, "in use")

	for i, name := range []string{"first", "second"} {
		clone(t, "--snapshot", "warm", "--memory", "server", "--name", name, "--rm=false")
		if n := countOf(t, name); n == 0 {
			t.Errorf("%s does not count", name)
		}
		st := servedBy(t, "warm")
		if st.WorkingSet == 0 || len(st.VMs) != i+1 || (st.VMs[i].Pushed > 0) != (i > 0) {
			t.Errorf("%s: %+v", name, st)
		}
		t.Logf("%+v", st)
	}

	// What was recorded travels with the snapshot.
	archive := filepath.Join(t.TempDir(), "warm.fcvm")
	fcvm(t, "snapshot", "export", "warm", archive).want(t, 0, "")
	fcvm(t, "snapshot", "import", "--name", "travelled", archive).want(t, 0, "travelled\n")
	if r := fcvm(t, "memory-server", "-d", "--keep", "travelled"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if here, there := servedBy(t, "warm").WorkingSet, servedBy(t, "travelled").WorkingSet; there != here {
		t.Errorf("of a working set of %d pages %d have arrived", here, there)
	}
	fcvm(t, "memory-server", "stop", "travelled").want(t, 0, "")
	fcvm(t, "snapshot", "rm", "travelled").want(t, 0, "travelled\n")

	fcvm(t, "memory-server", "stop", "warm").wantError(t, 125, "2 VMs have their memory", "--force")
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	for _, name := range []string{"first", "second"} {
		fcvm(t, "wait", name)
		t.Logf("%s has ended %s after its server", name, time.Since(killed).Round(time.Millisecond))
		r := fcvm(t, "inspect", "--format", "{{.Reason}}", name)
		if !strings.Contains(r.stdout, "memory server is gone") {
			t.Errorf("%s says %s%s", name, r.stdout, r.stderr)
		}
	}
	if n, err := strconv.Atoi(inVM(t, "original", "cat", "/count")); err != nil || n == 0 {
		t.Errorf("the original counts %d, %v", n, err)
	}
}

// TestMemoryServerKilledWhileItRecords: the clone it was for ends and says why,
// no half recording counts as a whole one, and the next server serves.
func TestMemoryServerKilledWhileItRecords(t *testing.T) {
	if env.driver != "firecracker" {
		t.Skip("only Firecracker takes memory from a server")
	}
	detach(t, []string{"--name", "original", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	snapshotOf(t, "original", "warm")
	fcvm(t, "rm", "-f", "original").want(t, 0, "original\n")
	serve := func() int {
		t.Helper()
		if r := fcvm(t, "memory-server", "-d", "--keep", "warm"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		pid := servedBy(t, "warm").PID
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		return pid
	}
	for i := range rounds(t, "FCVM_TEST_KILLS", 2) {
		server := serve()
		// It is ready, and the recording complete, when somebody says so: nobody does.
		p := start(t, "clone", "-d", "--rm", "--snapshot", "warm", "--memory", "server", "--name", "recorded", "--wait-ready", "exec=test -e /go,timeout=10m")
		p.eventually(t, "clone with memory from the server", func() bool { return len(servedBy(t, "warm").VMs) == 1 })
		time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
		if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		code := p.wait(t)
		p.result().wantError(t, code, "memory server is gone")
		if code == 0 {
			t.Errorf("round %d: the clone came up without its memory", i)
		}
		t.Logf("ended %s after its server", time.Since(killed).Round(time.Millisecond))
	}
	serve()
	if st := servedBy(t, "warm"); st.WorkingSet != 0 {
		t.Errorf("a recording that was broken off counts: %+v", st)
	}
	clone(t, "--snapshot", "warm", "--memory", "server", "--name", "whole")
	if n, st := countOf(t, "whole"), servedBy(t, "warm"); n == 0 || st.WorkingSet == 0 {
		t.Errorf("after that: count %d, %+v", n, st)
	}
	fcvm(t, "rm", "-f", "whole").want(t, 0, "whole\n")
	fcvm(t, "memory-server", "stop", "warm").want(t, 0, "")
}
