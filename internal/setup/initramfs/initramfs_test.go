package initramfs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func testArchive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, err := range []error{
		w.Dir("dev", 0o755),
		w.Char("dev/console", 0o600, 5, 1),
		w.Dir("lib", 0o750),
		w.File("init", 0o755, []byte("\x7fELF and so on")),
		w.File("lib/empty", 0o644, nil),
		w.File("lib/one", 0o644, []byte("1")),
		w.File("lib/four", 0o644, []byte("1234")),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func cpio(t *testing.T, dir string, archive []byte, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(archive)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cpio %v: %v", args, err)
	}
	return string(out)
}

func TestList(t *testing.T) {
	list := cpio(t, "", testArchive(t), "-t", "-v", "--numeric-uid-gid", "--quiet")
	want := []string{
		"drwxr-xr-x 0 0 0 dev", "crw------- 0 0 5, 1 dev/console", "drwxr-x--- 0 0 0 lib",
		"-rwxr-xr-x 0 0 14 init", "-rw-r--r-- 0 0 0 lib/empty", "-rw-r--r-- 0 0 1 lib/one", "-rw-r--r-- 0 0 4 lib/four",
	}
	lines := strings.Split(strings.TrimSpace(list), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d entries:\n%s", len(lines), list)
	}
	for i, line := range lines {
		f := strings.Fields(line) // mode, links, uid, gid, size, three of date, name
		got := strings.Join(append(append([]string{f[0]}, f[2:len(f)-4]...), f[len(f)-1]), " ")
		if got != want[i] {
			t.Errorf("entry %d: %q, want %q", i, got, want[i])
		}
	}
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	cpio(t, dir, testArchive(t), "-i", "--quiet", "--no-preserve-owner", "init", "lib", "lib/*")
	for name, want := range map[string]string{"init": "\x7fELF and so on", "lib/empty": "", "lib/one": "1", "lib/four": "1234"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// limited fails after some bytes.
type limited int

var errFull = errors.New("full")

func (l *limited) Write(p []byte) (int, error) {
	if *l -= limited(len(p)); *l < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteError(t *testing.T) {
	for n := range 300 {
		l := limited(n)
		w := NewWriter(&l)
		_ = w.Dir("a", 0o755)
		_ = w.File("a/b", 0o644, bytes.Repeat([]byte("x"), 70))
		if err := w.Close(); !errors.Is(err, errFull) {
			t.Fatalf("room for %d bytes: %v", n, err)
		}
	}
}
