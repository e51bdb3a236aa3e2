package vmm

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		name, content string
		n             int
		want          []string
	}{
		{"last lines", "one\ntwo\nthree\n", 2, []string{"two", "three"}},
		{"fewer than asked", "one\n", 5, []string{"one"}},
		{"empty lines", "one\n\r\n  \ntwo\r\n\n", 2, []string{"one", "two"}},
		{"no line break at the end", "one\ntwo", 1, []string{"two"}},
		{"escapes of a terminal", "\x1b[2J\x1b]0;title\x07 a\u009bb\x7f\n", 1, []string{"[2J]0;title ab"}},
		{"empty", "", 3, []string{}},
	} {
		if d := cmp.Diff(c.want, append([]string{}, Tail(write(t, c.content), c.n)...)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	if l := Tail("/nonexistent", 1); l != nil {
		t.Errorf("of a file that is not there: %q", l)
	}
	// Only the end of a long file is looked at.
	long := write(t, "start\n"+strings.Repeat("x\n", tailBytes))
	if l := Tail(long, 1<<20); len(l) > tailBytes || l[0] == "start" {
		t.Errorf("%d lines of a long file", len(l))
	}
}

func TestExplain(t *testing.T) {
	const panicked = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs"
	for _, c := range []struct {
		name         string
		exit         Exit
		console, log string
		want         string
	}{
		{"power off", Exit{}, "bye\n", "", "the guest powered off"},
		{"panic", Exit{}, panicked + "\nRebooting\n", "", "the guest's kernel panicked: Kernel panic - not syncing: VFS: Unable to mount root fs"},
		{"killed", Exit{Code: -1, Signal: 9, Reason: "killed by SIGKILL"}, panicked, "", "killed by SIGKILL"},
		{"failed", Exit{Code: 1}, "", "warning\nno such option\n", "QEMU failed: no such option"},
		{"failed in silence", Exit{Code: 3}, "", "", "QEMU ended with status 3"},
	} {
		if got := Explain(c.exit, "QEMU", write(t, c.console), write(t, c.log)); got.Reason != c.want {
			t.Errorf("%s: %q", c.name, got.Reason)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"kernel", "initrd", "ro", "rw"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{Dir: dir, Kernel: "kernel", Initrd: "initrd", Disks: []Disk{{ID: "root", Path: "ro", ReadOnly: true}, {ID: "scratch", Path: "rw"}}}
	if err := cfg.CheckFiles(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "rw")); err != nil {
		t.Fatal(err)
	}
	if err := cfg.CheckFiles(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "disk scratch") {
		t.Error(err)
	}
}

// A directory whose name is longer than a socket's address may be.
func TestDialInLongDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 50))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	l, err := net.Listen("unix", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := DialIn(t.Context(), dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestDialSoon(t *testing.T) {
	dir := t.TempDir()
	go func() {
		time.Sleep(20 * time.Millisecond)
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
	}()
	c, err := DialSoon(t.Context(), nil, dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()

	done := make(chan struct{})
	close(done)
	if _, err := DialSoon(t.Context(), done, dir, "never"); !errors.Is(err, ErrExited) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := DialSoon(ctx, nil, dir, "never"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// ended is a process that has.
type ended struct{ Exit }

func (ended) PID() int               { return 1 }
func (ended) Signal(os.Signal) error { return nil }
func (e ended) Wait() Exit           { return e.Exit }

func TestChild(t *testing.T) {
	c := WatchChild("QEMU", ended{Exit{Code: 1}}, write(t, ""), write(t, "no memory\n"))
	if err := c.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "no memory") {
		t.Error(err)
	}
	if err := c.Cause(t.Context(), errors.New("hung up")); !errors.Is(err, ErrExited) {
		t.Error(err)
	}
	if c.Exit().Code != 1 {
		t.Errorf("%+v", c.Exit())
	}
}
