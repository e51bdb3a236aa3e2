package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/snapshot"
)

// keptSnapshot makes a snapshot whose VM is gone, and returns its directory.
func keptSnapshot(t *testing.T, name string) string {
	t.Helper()
	vm := name + "-vm"
	r := run(t, []string{"-d", "--name", vm, "--save-snapshot", name, "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		fcvm(t, "rm", "-f", vm)
		fcvm(t, "snapshot", "rm", "-f", name)
	})
	fcvm(t, "rm", "-f", vm).want(t, 0, vm+"\n")
	r = fcvm(t, "snapshot", "inspect", "--format", "{{.Directory}}", name)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// A snapshot is started with what it was taken with, or not at all.
func TestCloneRefusesWhatDiffers(t *testing.T) {
	dir := keptSnapshot(t, "fussy")
	file := filepath.Join(dir, "manifest.json")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*snapshot.Manifest)
		words  []string
	}{
		"another version": {func(m *snapshot.Manifest) { m.Needs.VMMVersion = "0.0.1" }, []string{"version", "0.0.1"}},
		"another CPU":     {func(m *snapshot.Manifest) { m.Needs.CPU = snapshot.CPU{Model: "Abacus", Features: "x"} }, []string{"CPU", "Abacus"}},
		"no kernel":       {func(m *snapshot.Manifest) { m.Needs.KernelID = "0123456789abcdef" }, []string{"kernel", "0123456789abcdef"}},
		"no image": {func(m *snapshot.Manifest) { m.Needs.ImageDigest = "sha256:" + strings.Repeat("0", 64) }, []string{
			"needs the image", strings.Repeat("0", 64), "fcvm image pull",
		}},
	} {
		var m snapshot.Manifest
		if err := json.Unmarshal(whole, &m); err != nil {
			t.Fatal(err)
		}
		c.change(&m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		fcvm(t, "clone", "--snapshot", "fussy", "--exec", "true").wantError(t, 125, append(c.words, "fussy")...)
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	fcvm(t, "clone", "--snapshot", "fussy", "--exec", "echo well").want(t, 0, "well\n")
	flipByte(t, filepath.Join(dir, snapshot.MemoryName))
	fcvm(t, "clone", "--snapshot", "fussy", "--exec", "true").wantError(t, 125, "fussy", "checksum of its memory is wrong")
	fcvm(t, "snapshot", "export", "fussy", filepath.Join(t.TempDir(), "x")).wantError(t, 125, "checksum")
	fcvm(t, "clone", "--snapshot", "nobody").wantError(t, 125, `no such snapshot: "nobody"`, "fcvm snapshot ls")
	if left := fcvm(t, "ls", "-aq").stdout; left != "" {
		t.Errorf("VMs are left: %s", left)
	}
}

// flipByte damages the first block of data of a file.
func flipByte(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const seekData = 3
	off, err := f.Seek(0, seekData)
	if err != nil {
		t.Fatal(err)
	}
	b := []byte{0}
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestKilledSnapshots kills what takes, starts, exports and imports snapshots at
// random moments, $FCVM_TEST_KILLS times each. No snapshot is then listed that is
// not whole, and nothing is left but what the next command sweeps.
func TestKilledSnapshots(t *testing.T) {
	n := rounds(t, "FCVM_TEST_KILLS", 2)
	keptSnapshot(t, "mother")
	archive := filepath.Join(t.TempDir(), "mother.fcvm")
	if r := fcvm(t, "snapshot", "export", "mother", archive); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, op := range []struct {
		name       string
		args       []string
		supervisor bool // it is the VM's supervisor that is killed, not the command
	}{
		{name: "create, the command", args: []string{"snapshot", "create", "--name", "child", "source"}},
		{name: "create, the supervisor", args: []string{"snapshot", "create", "--name", "child", "source"}, supervisor: true},
		{name: "clone", args: []string{"clone", "--name", "child", "--snapshot", "mother"}},
		{name: "export", args: []string{"snapshot", "export", "mother", archive + "2"}},
		{name: "import", args: []string{"snapshot", "import", "--name", "child", archive}},
	} {
		t.Run(op.name, func(t *testing.T) {
			for range n {
				killSnapshotting(t, op.args, op.supervisor)
			}
		})
	}
	fcvm(t, "clone", "--snapshot", "mother", "--exec", "echo well").want(t, 0, "well\n")
}

func killSnapshotting(t *testing.T, args []string, supervisor bool) {
	t.Helper()
	const longest = 2 * time.Second
	before := snapshotHost()
	defer func() { fcvm(t, "rm", "-f", "source", "child") }()
	pid := 0
	if args[len(args)-1] == "source" {
		run(t, []string{"-d", "--name", "source", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
		pid = describe(t, "source").Supervisor.PID
	}
	p := start(t, args...)
	if !supervisor {
		pid = p.Process.Pid
	}
	after := time.Duration(rand.Int64N(int64(longest)))
	time.Sleep(after)
	sigkill(pid)
	p.wait(t)
	// Whatever is listed can be read, and is what it says.
	for _, name := range strings.Fields(fcvm(t, "snapshot", "ls", "-q").stdout) {
		if r := fcvm(t, "snapshot", "verify", name); r.code != 0 {
			t.Errorf("killed after %s: %s", after, r.stderr)
		}
	}
	fcvm(t, "rm", "-f", "source", "child")
	fcvm(t, "snapshot", "rm", "-f", "child")
	fcvm(t, "ls") // sweeps
	if left := leftovers(before); len(left) > 0 {
		t.Errorf("killed after %s: left:\n  %s", after, strings.Join(left, "\n  "))
	}
}
