package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk runs a VM whose data directory gets full: the container learns
// of it, the record is written to its end, and nothing is left.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts a small disk")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256m"); err != nil {
		t.Skip("mount a small disk: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	// All that VMs start from is there, the largest of it elsewhere.
	for _, name := range []string{"setup.json", "kernels"} { // with the times by which fcvm knows them
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", filepath.Join(env.data, name), small).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v\n%s", name, err, out)
		}
	}
	if err := os.Symlink(filepath.Join(env.data, "roots"), filepath.Join(small, "roots")); err != nil {
		t.Fatal(err)
	}
	before := snapshotHost()
	in := func(args ...string) result { return fcvm(t, append([]string{"--data-dir", small}, args...)...) }
	args := append([]string{"--data-dir", small}, runArgs(t, []string{"--name", "fat", "--logs", "both"}, "busybox",
		"sh", "-c", "dd if=/dev/urandom of=/fat bs=1M count=300 && sync && echo fits; echo over; sync; exit 5")...)
	r := fcvm(t, args...)
	if r.code == 0 || strings.Contains(r.stdout, "fits") {
		t.Errorf("300 MiB on a disk of 256: exit code %d, stdout %q, stderr:\n%s", r.code, r.stdout, r.stderr)
	}
	t.Logf("exit code %d, stdout %q, stderr:\n%s", r.code, r.stdout, r.stderr)
	if s := in("inspect", "--format", "{{.Status}}: {{.Reason}}", "fat"); s.code != 0 || !strings.HasPrefix(s.stdout, "exited: ") {
		t.Errorf("inspect: exit code %d, %q, %s", s.code, s.stdout, s.stderr)
	}
	again := fcvm(t, append([]string{"--data-dir", small}, runArgs(t, []string{"--name", "next"}, "busybox", "true")...)...)
	if again.code != 0 {
		again.wantError(t, 125, "no space left on device", "make room")
	}
	in("rm", "fat").want(t, 0, "fat\n")
	if left, err := os.ReadDir(filepath.Join(small, "vms")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	after := fcvm(t, append([]string{"--data-dir", small}, runArgs(t, nil, "busybox", "true")...)...)
	after.want(t, 0, "")
	if left := leftovers(before); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
