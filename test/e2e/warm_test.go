package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/snapshot"
)

// A run starts from the guest that an earlier one of the same shape has left, and
// from no other; without it, and when it is damaged, it boots.
func TestWarmStart(t *testing.T) {
	shape := []string{"--mem", "333m", "--network", "none"} // nobody else's
	runs := func(flags ...string) (from string) {
		t.Helper()
		run(t, append([]string{"--name", "tepid", "--rm=false"}, flags...), "busybox", "sh", "-c", "echo $((6*7)); exit 3").want(t, 3, "42\n")
		defer fcvm(t, "rm", "tepid")
		r := fcvm(t, "inspect", "--format", "{{.Resolved.Snapshot.ID}}", "tepid")
		return strings.TrimSpace(r.stdout)
	}
	prune := func() { fcvm(t, "snapshot", "prune", "--force") }
	prune()
	t.Cleanup(prune)

	if from := runs(append(shape, "--no-cache")...); from != "" {
		t.Errorf("--no-cache started from %s", from)
	}
	if from := runs(shape...); from != "" {
		t.Errorf("--no-cache has left %s", from)
	}
	kept := runs(shape...)
	if kept == "" {
		t.Fatal("the second run booted")
	}
	other := filepath.Join(t.TempDir(), "other.tar")
	if err := os.Symlink(strings.TrimPrefix(archive(t, "busybox"), "oci-archive:"), other); err != nil {
		t.Fatal(err)
	}
	fcvm(t, append(append([]string{"run", "--vmm", env.driver, "--name", "renamed", "--rm=false"}, shape...), "oci-archive:"+other, "true")...).want(t, 0, "")
	if from := strings.TrimSpace(fcvm(t, "inspect", "--format", "{{.Resolved.Snapshot.ID}}", "renamed").stdout); from != kept {
		t.Errorf("under another name the same image started from %q, not from %s", from, kept)
	}
	fcvm(t, "rm", "renamed")
	if r := fcvm(t, "system", "df", "--verbose"); !strings.Contains(r.stdout, kept) {
		t.Errorf("system df does not show %s:\n%s", kept, r.stdout)
	}
	for what, flags := range map[string][]string{
		"other memory": {"--mem", "334m", "--network", "none"}, "other CPUs": append(shape, "--cpu", "1"), "--no-cache": append(shape, "--no-cache"),
	} {
		if from := runs(flags...); from != "" {
			t.Errorf("%s: started from %s", what, from)
		}
	}

	memory := filepath.Join(env.data, "snapshots", kept, snapshot.MemoryName)
	if err := os.Chmod(memory, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(memory, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const offset = 16 << 20
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if from := runs(shape...); from != "" {
		t.Errorf("a damaged guest was started: %s", from)
	}
	if from := runs(shape...); from == "" || from == kept {
		t.Errorf("after it was found damaged: %q", from)
	}
	prune()
	if from := runs(shape...); from != "" {
		t.Errorf("after prune: %s", from)
	}
}
