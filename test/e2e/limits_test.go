package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// described is a part of what inspect says of a VM.
type described struct {
	Supervisor struct{ PID int }
	Resolved   struct {
		VMM    struct{ PID int }
		Limits struct {
			By, Cgroup, Note string
			Memory           int64
			CPUs             int
			Missing          []string
		}
	}
}

func describe(t *testing.T, vm string) described {
	t.Helper()
	r := fcvm(t, "inspect", vm)
	var list []described
	if err := decode([]byte(r.stdout), &list); err != nil || len(list) != 1 {
		t.Fatalf("inspect %s: exit code %d, %v; stderr:\n%s", vm, r.code, err, r.stderr)
	}
	return list[0]
}

// TestLimits: a VM's processes are in a control group of their own, with
// limits, or inspect says why they are not; and no group stays behind, however
// the VM ends.
func TestLimits(t *testing.T) {
	const memory, cpus = 384, 1
	flags := []string{"--name", "held", "--mem", strconv.Itoa(memory), "--cpu", strconv.Itoa(cpus)}
	for _, end := range []string{"stop", "SIGKILL of the supervisor"} {
		detach(t, flags, "busybox", "sleep", "1000")
		d := describe(t, "held")
		l := d.Resolved.Limits
		if l.By == "" {
			if want := os.Getenv("FCVM_TEST_CGROUP"); l.Note == "" || want != "" {
				t.Fatalf("no control group, with the note %q; want one by %q", l.Note, want)
			}
			t.Skip(l.Note)
		}
		t.Logf("%+v", l)
		if least := int64(memory) << 20; l.Memory <= least || l.Memory > least+(512<<20) || l.CPUs != cpus+1 {
			t.Errorf("limits of a VM with %d MiB and %d CPUs: %+v", memory, cpus, l)
		}
		if got := file(t, l.Cgroup, "memory.max"); got != strconv.FormatInt(l.Memory, 10) {
			t.Errorf("memory.max is %s, inspect says %d", got, l.Memory)
		}
		// A thread of KVM's counts as a process of the group's, too.
		if got := strings.Fields(file(t, l.Cgroup, "cgroup.procs")); !slices.Contains(got, strconv.Itoa(d.Resolved.VMM.PID)) {
			t.Errorf("in the group is %q, not the VMM, %d", got, d.Resolved.VMM.PID)
		}
		t.Logf("memory: current %s, peak %s; %s", file(t, l.Cgroup, "memory.current"), file(t, l.Cgroup, "memory.peak"),
			strings.Join(strings.Fields(file(t, l.Cgroup, "memory.stat"))[:12], " "))
		if end == "stop" {
			fcvm(t, "stop", "--time", "0", "held").want(t, 0, "held\n")
		} else if err := syscall.Kill(d.Supervisor.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "end of the group after "+end, func() bool {
			fcvm(t, "ls")
			_, err := os.Stat(l.Cgroup)
			return errors.Is(err, fs.ErrNotExist)
		})
		fcvm(t, "rm", "-f", "held").want(t, 0, "held\n")
	}
}

// TestOverhead: what a VMM needs beside its guest's memory fits into what the
// limit on memory has for it (vmm.Capabilities).
func TestOverhead(t *testing.T) {
	const memory = 384                                                       // MiB
	room := map[string]int{"firecracker": 64, "qemu": 192 + 256}[env.driver] // MiB
	detach(t, []string{"--name", "busy", "--mem", strconv.Itoa(memory)}, "busybox", "sleep", "1000")
	fcvm(t, "exec", "busy", "dd", "if=/dev/urandom", "of=/x", "bs=1M", "count=64").want(t, 0, "")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", describe(t, "busy").Resolved.VMM.PID))
	if err != nil {
		t.Skip(err)
	}
	var size, guest, own int // KiB
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case f[0] == "Size:":
			size = n
		case f[0] == "Rss:" && size == memory<<10: // a file's, where it can be saved or was
			guest += n
		case f[0] == "Anonymous:" && size != memory<<10:
			own += n
		}
	}
	t.Logf("%s: %d KiB of its own beside %d of the guest's", env.driver, own, guest)
	if guest == 0 || own > room<<10 {
		t.Errorf("it has %d KiB of its own, %d of the guest's; there is room for %d MiB", own, guest, room)
	}
}

func file(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(b))
}

// TestIORateIsKeptOrRefused: the limit that is asked for by name is not
// silently left out.
func TestIORateIsKeptOrRefused(t *testing.T) {
	r := run(t, []string{"--io-max", "50m", "--logs", "both", "--name", "slow"}, "busybox", "true")
	defer fcvm(t, "rm", "-f", "slow")
	if r.code != 0 {
		r.wantError(t, 125, "--io-max cannot be kept to on this host")
	}
	run(t, []string{"--io-max", "1k"}, "busybox", "true").wantError(t, 125, "--io-max 1024", "at least")
}

// TestScopesOfSystemd tries control groups where systemd runs: in a guest.
func TestScopesOfSystemd(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no Go here to build the test that runs in the guest")
	}
	if env.driver != "qemu" {
		t.Skip("the driver makes no difference")
	}
	program := filepath.Join(t.TempDir(), "cgroup.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "../../internal/cgroup")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test: %v\n%s", err, out)
	}
	detach(t, []string{"--name", "scopes", "--init", "systemd"}, "busybox", "sleep", "10000")
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const place = "/var/lib/containers/" // a disk, rather than an overlay
	fcvmIn(t, f, "exec", "-i", "--guest", "scopes", "sh", "-c", "cat > "+place+"cgroup.test; chmod 755 "+place+"cgroup.test; chmod 1777 "+place).want(t, 0, "")
	test := func(name string, before ...string) {
		args := append([]string{"exec", "--guest", "scopes"}, before...)
		args = append(args, "env", "FCVM_TEST_CGROUP=systemd", "TMPDIR="+place, place+"cgroup.test", "-test.v")
		r := fcvm(t, args...)
		t.Logf("%s:\n%s%s", name, r.stdout, r.stderr)
		if r.code != 0 || strings.Contains(r.stdout, "SKIP: TestGroup") {
			t.Errorf("%s: exit code %d", name, r.code)
		}
		if left := fcvm(t, "exec", "--guest", "scopes", "sh", "-c", "find /sys/fs/cgroup -name 'fcvm-*'"); left.stdout != "" {
			t.Errorf("%s: left behind: %s", name, left.stdout)
		}
	}
	test("root, system's manager")
	// A user's manager, as user@.service starts it.
	const manager = `useradd -m -u 1000 user 2>/dev/null || { echo user:x:1000:1000::/tmp:/bin/sh >> /etc/passwd; echo user:x:1000: >> /etc/group; }
		mkdir -p /run/user/1000 && chown user:user /run/user/1000 && chmod 700 /run/user/1000
		systemd-run --quiet --uid=1000 --gid=1000 -p Delegate='pids memory cpu' -E XDG_RUNTIME_DIR=/run/user/1000 \
			--slice=user-1000.slice --unit=user-manager /lib/systemd/systemd --user
		for i in $(seq 300); do [ -S /run/user/1000/systemd/private ] && exit 0; sleep 0.1; done; exit 1`
	if r := fcvm(t, "exec", "--guest", "scopes", "sh", "-c", manager); r.code != 0 {
		t.Fatalf("start a user's manager: %s%s", r.stdout, r.stderr)
	}
	test("user, own manager", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000")
}
