package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A snapshot that is exported with its guest is all that a host needs which has
// nothing but fcvm and the VMM.
func TestSnapshotTravelsToAnEmptyHost(t *testing.T) {
	detach(t, []string{"--name", "traveller", "--no-cache", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	inVM(t, "traveller", "sh", "-c", "echo original >/who")
	sum := inVM(t, "traveller", "md5sum", "/bin/busybox")
	snapshotOf(t, "traveller", "to-travel")
	dir := t.TempDir()
	light, whole := filepath.Join(dir, "light.fcvm"), filepath.Join(dir, "whole.fcvm")
	fcvm(t, "snapshot", "export", "to-travel", light).want(t, 0, "")
	fcvm(t, "snapshot", "export", "--with-guest", "to-travel", whole).want(t, 0, "")

	there := func(args ...string) result {
		return fcvm(t, append([]string{"--data-dir", filepath.Join(dir, "there")}, args...)...)
	}
	r := there("snapshot", "import", "--name", "alone", light)
	r.want(t, 0, "alone\n")
	for _, want := range []string{"needs the kernel", "needs the guest root", "needs the image", "--with-guest"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("import of a snapshot alone does not say %q:\n%s", want, r.stderr)
		}
	}
	there("clone", "--snapshot", "alone", "--exec", "true").wantError(t, 125, "kernel", "is missing", "--with-guest")

	r = there("snapshot", "import", "--name", "arrived", whole)
	r.want(t, 0, "arrived\n")
	if strings.Contains(r.stderr, "not here") {
		t.Errorf("something is missing:\n%s", r.stderr)
	}
	// Both have what they need now, and keep it.
	there("system", "prune", "--force").want(t, 0, "Nothing to remove.\n")
	for _, name := range []string{"arrived", "alone"} {
		there("clone", "--snapshot", name, "--exec", "cat /who; md5sum /bin/busybox").want(t, 0, "original\n"+sum+"\n")
	}
	there("snapshot", "rm", "arrived", "alone").want(t, 0, "arrived\nalone\n")

	flipByte(t, whole)
	r = there("snapshot", "import", whole)
	r.wantError(t, 125, "snapshot is damaged")
	if left, err := os.ReadDir(filepath.Join(dir, "there", "snapshots")); err != nil || len(left) != 1 {
		t.Errorf("of a damaged archive is left: %v, %v", left, err)
	}
}
