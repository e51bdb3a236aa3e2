package agent

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	outside, inside := filepath.Join(dir, "outside"), filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(inside, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeText(t, outside, "outside")
	writeText(t, filepath.Join(inside, "file"), "a longer text")
	writeText(t, filepath.Join(inside, "target"), "target")
	for name, target := range map[string]string{"out": outside, "in": "target", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(inside, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(inside, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := openTree(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.close() }()
	for _, path := range []string{"file", "none", "none/file", "file/file", "dir", "fifo", "out", "in", "loop", "../outside", "dir/../../outside"} {
		if err := root.rewrite(path, func(old string) string { return "new" + old[:min(len(old), 3)] }); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	wantText(t, filepath.Join(inside, "file"), "newa l")
	wantText(t, filepath.Join(inside, "target"), "target")
	wantText(t, outside, "outside")
	if _, err := os.Stat(filepath.Join(inside, "none")); err == nil {
		t.Error("a file was made")
	}
}

// A file that is mounted elsewhere stays the same one.
func TestRewriteInPlace(t *testing.T) {
	dir := t.TempDir()
	path, elsewhere := filepath.Join(dir, "hosts"), filepath.Join(dir, "elsewhere")
	writeText(t, path, "old\n")
	if err := os.Link(path, elsewhere); err != nil {
		t.Fatal(err)
	}
	root, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.close() }()
	for _, text := range []string{"longer than before\n", "", "short\n"} {
		if err := root.rewrite("hosts", func(string) string { return text }); err != nil {
			t.Error(err)
		}
		wantText(t, elsewhere, text)
	}
}

func TestMachineIDFiles(t *testing.T) {
	for name, tc := range map[string]struct{ old, want string }{
		"one":           {oldID + "\n", newID + "\n"},
		"no line break": {oldID, newID},
		"none":          {"", ""},
		"systemd's":     {"uninitialized\n", "uninitialized\n"},
		"something":     {"machine\n", "machine\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, sub := range []string{"etc", "var/lib/dbus"} {
				if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			writeText(t, filepath.Join(dir, "etc/machine-id"), tc.old)
			if err := os.Symlink("/etc/machine-id", filepath.Join(dir, "var/lib/dbus/machine-id")); err != nil {
				t.Fatal(err)
			}
			root, err := openTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.close() }()
			if err := (&renaming{machineID: newID}).machineIDFiles(root); err != nil {
				t.Error(err)
			}
			wantText(t, filepath.Join(dir, "etc/machine-id"), tc.want)
		})
	}
}

func TestOwnMachineID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "machine-id")
	writeText(t, path, "")
	seen := map[string]bool{}
	for range 2 {
		if err := ownMachineID(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`).Match(b) {
			t.Errorf("%q, %v", b, err)
		}
		seen[string(b)] = true
	}
	if len(seen) != 1 {
		t.Errorf("one that was there was replaced: %v", seen)
	}
}
