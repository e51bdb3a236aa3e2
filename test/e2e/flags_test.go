package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestContainerFlags runs one container with many flags and looks at each
// from the inside: a VM is too slow to start one for each.
func TestContainerFlags(t *testing.T) {
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte("# a comment\nFROM_FILE=a b\nFROM_HOST\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FROM_HOST", "host's")
	flags := []string{
		"--name", "flags", "-e", "A=1", "-e", "FROM_HOST", "--env-file", envFile, "-w", "/tmp", "-u", "65534:65534",
		"--hostname", "box", "--label", "k=v", "--cap-drop", "NET_RAW", "--tmpfs", "/scratch:size=1m", "--entrypoint", "/bin/sh",
	}
	script := `
echo A=$A
echo FROM_FILE=$FROM_FILE
echo FROM_HOST=$FROM_HOST
echo pwd=$(pwd)
echo id=$(id -u):$(id -g)
echo hostname=$(hostname)
grep -o "/scratch tmpfs" /proc/mounts
grep -o "/dev/shm tmpfs" /proc/mounts
grep -c . /etc/resolv.conf
grep -c localhost /etc/hosts
echo pids=$(cat /sys/fs/cgroup/pids.max)
touch /tmp/x && echo tmp is writable
`
	r := run(t, flags, "busybox", "-c", script)
	for _, want := range []string{
		"A=1", "FROM_FILE=a b", "FROM_HOST=host's", "pwd=/tmp", "id=65534:65534", "hostname=box",
		"/scratch tmpfs", "/dev/shm tmpfs", "pids=2048", "tmp is writable",
	} {
		if !strings.Contains("\n"+r.stdout, "\n"+want+"\n") {
			t.Errorf("output has no line %q", want)
		}
	}
	if t.Failed() || r.code != 0 {
		t.Errorf("exit code %d, output:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
	}
}

func TestReadOnlyAndPrivileged(t *testing.T) {
	t.Run("read-only", func(t *testing.T) {
		r := run(t, []string{"--read-only"}, "busybox", "sh", "-c", "touch /x 2>/dev/null || echo refused; grep CapEff /proc/self/status")
		if !strings.HasPrefix(r.stdout, "refused\n") {
			t.Errorf("the root is writable: %q; stderr:\n%s", r.stdout, r.stderr)
		}
	})
	t.Run("privileged", func(t *testing.T) {
		r := run(t, []string{"--privileged"}, "busybox", "sh", "-c", "mount -t tmpfs x /tmp && echo mounted")
		r.want(t, 0, "mounted\n")
	})
	t.Run("capabilities", func(t *testing.T) {
		r := run(t, []string{"--cap-drop", "ALL", "--cap-add", "NET_ADMIN"}, "busybox", "grep", "CapEff", "/proc/self/status")
		r.want(t, 0, "CapEff:\t0000000000001000\n")
	})
}

// A working directory that the image has not is made, in a container that is
// read-only as well; a tmpfs takes the place of the image's volume.
func TestWorkDirIsMade(t *testing.T) {
	t.Run("as another user", func(t *testing.T) {
		r := run(t, []string{"-w", "/new/a", "-u", "65534"}, "busybox", "sh", "-c", "pwd; stat -c '%u %a' . ..; stat -c %a /")
		r.want(t, 0, "/new/a\n0 755\n0 755\n755\n")
	})
	t.Run("read-only, a tmpfs for a volume", func(t *testing.T) {
		script := `pwd; while read -r _ at type _; do [ "$at" != /data ] || echo "$type"; done < /proc/mounts`
		r := run(t, []string{"--read-only", "-w", "/new/a", "--tmpfs", "/data:size=1m", "--entrypoint", "/usr/bin/sh"}, "redis", "-c", script)
		r.want(t, 0, "/new/a\ntmpfs\n")
	})
}

func TestLogsGoToFile(t *testing.T) {
	r := run(t, []string{"--name", "logged", "--logs", "file"}, "busybox", "sh", "-c", "echo out; echo err >&2")
	t.Cleanup(func() { fcvm(t, "rm", "logged").want(t, 0, "logged\n") })
	r.want(t, 0, "")
	l := fcvm(t, "logs", "logged")
	l.want(t, 0, "out\n")
	if l.stderr != "err\n" {
		t.Errorf("logs: stderr %q, want %q", l.stderr, "err\n")
	}
}

func TestRecordIsKept(t *testing.T) {
	run(t, []string{"--name", "kept", "--rm=false"}, "busybox", "sh", "-c", "exit 3").want(t, 3, "")
	if r := fcvm(t, "ls", "-a"); !strings.Contains(r.stdout, "kept") {
		t.Errorf("ls -a does not list the VM:\n%s", r.stdout)
	}
	run(t, []string{"--name", "kept"}, "busybox", "true").wantError(t, 125, "kept", "taken", "fcvm rm kept")
	fcvm(t, "rm", "kept").want(t, 0, "kept\n")
	if r := fcvm(t, "ls", "-a", "-q"); r.stdout != "" {
		t.Errorf("ls -a -q after rm: %q", r.stdout)
	}
}

// TestInsideTheGuest looks at the container from the VM around it.
func TestInsideTheGuest(t *testing.T) {
	p := start(t, runArgs(t, []string{"--name", "inside", "--label", "color=blue"}, "busybox", "sh", "-c", "echo ready; sleep 1000")...)
	p.waitOutput(t, "ready")
	ps := fcvm(t, "exec", "--guest", "inside", "podman", "ps", "--format", "{{.Names}} {{.Status}}")
	if ps.code != 0 || !strings.HasPrefix(ps.stdout, "inside Up") {
		t.Errorf("podman ps: exit code %d, %q; stderr:\n%s", ps.code, ps.stdout, ps.stderr)
	}
	fcvm(t, "exec", "--guest", "inside", "podman", "inspect", "--format", "{{.Config.Labels.color}}", "inside").want(t, 0, "blue\n")
	fcvm(t, "exec", "--guest", "inside", "sh", "-c", "exit 9").want(t, 9, "")
	fcvm(t, "exec", "--guest", "inside", "no-such-command").wantError(t, 127, "no-such-command")
	fcvmIn(t, strings.NewReader("through\n"), "exec", "--guest", "-i", "inside", "cat").want(t, 0, "through\n")
}
