package share

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/sftp"
)

// mounted is a share that is mounted here, as a guest has it.
type mounted struct {
	host  string // what is shared
	guest string // where it is seen
	share *Share
	relay *sftp.Relay
	conn  net.Conn // the server's end of the connection there is now
}

// pair returns the ends of a connection.
func pair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}

// mount shares path and mounts it with sshfs, as the agent does.
func mount(t *testing.T, path string, o Options) *mounted {
	t.Helper()
	sshfs, err := exec.LookPath("sshfs")
	if err != nil {
		t.Skip("sshfs is not installed")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skipf("cannot mount with FUSE here: %v, as user %d", err, os.Geteuid())
	} else {
		_ = f.Close()
	}
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	m := &mounted{host: path, guest: t.TempDir(), share: s}
	ours, theirs := pair(t)
	f, err := theirs.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sshfs, append(sftp.Sshfs(sshfs, o.ReadOnly), m.guest)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = f.Close(), theirs.Close()
	m.relay = sftp.NewRelay(ours)
	go func() { _ = m.relay.Run() }()
	m.connect(t)
	t.Cleanup(func() {
		_ = unix.Unmount(m.guest, unix.MNT_DETACH)
		_ = s.Close()
		_ = ours.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(10 * time.Second)
	for {
		var st unix.Statfs_t
		if unix.Statfs(m.guest, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal("sshfs has mounted nothing")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// connect gives the relay a connection to the share, a new one if there is one.
func (m *mounted) connect(t *testing.T) {
	t.Helper()
	server, client := pair(t)
	m.conn = server
	go func() { _ = m.share.Serve(server) }()
	go func() { _ = m.relay.Connect(client) }()
}

func (m *mounted) in(name string) string  { return filepath.Join(m.guest, name) }
func (m *mounted) out(name string) string { return filepath.Join(m.host, name) }

func TestShareIsReadAndWritten(t *testing.T) {
	m := mount(t, t.TempDir(), Options{})
	for _, err := range []error{
		os.WriteFile(m.out("from-host"), []byte("hello"), 0o640),
		os.Mkdir(m.in("dir"), 0o750), os.WriteFile(m.in("dir/from-guest"), []byte("hi"), 0o604),
		os.Symlink("dir/from-guest", m.in("link")), os.Link(m.in("from-host"), m.in("hard")),
		os.Rename(m.in("dir"), m.in("moved")), os.WriteFile(m.in("\xff\x01\n"), nil, 0o600),
		os.Chtimes(m.in("hard"), time.Unix(1e9, 0), time.Unix(2e9, 0)),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for target, text := range map[string]string{"/etc/passwd": "root:", "../" + filepath.Base(m.guest) + "/from-host": "hello"} {
		if err := os.Remove(m.in("away")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if err := os.Symlink(target, m.out("away")); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(m.in("away")); err != nil || !strings.Contains(string(b), text) {
			t.Errorf("a link to %s: %.20q, %v", target, b, err)
		}
	}
	if b, err := os.ReadFile(m.in("from-host")); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(m.out("moved/from-guest")); err != nil || string(b) != "hi" {
		t.Errorf("%q, %v", b, err)
	}
	for _, path := range []string{m.out("link"), m.in("link")} {
		if to, err := os.Readlink(path); err != nil || to != "dir/from-guest" {
			t.Errorf("%s: %q, %v", path, to, err)
		}
	}
	for name, mode := range map[string]os.FileMode{"moved": 0o750 | os.ModeDir, "moved/from-guest": 0o604, "\xff\x01\n": 0o600, "hard": 0o640} {
		if fi, err := os.Lstat(m.out(name)); err != nil || fi.Mode() != mode {
			t.Errorf("%q: %v, want %v, %v", name, fi.Mode(), mode, err)
		}
	}
	if fi, err := os.Stat(m.out("from-host")); err != nil || fi.ModTime().Unix() != 2e9 || fi.Sys().(*syscall.Stat_t).Nlink != 2 {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestShareSurvivesALostConnection(t *testing.T) {
	m := mount(t, t.TempDir(), Options{})
	f, err := os.Create(m.in("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const lines = 2000
	done := make(chan error, 1)
	go func() {
		for range lines {
			if _, err := io.WriteString(f, "0123456789abcde\n"); err != nil {
				done <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
		done <- f.Sync()
	}()
	for i := range 20 {
		time.Sleep(50 * time.Millisecond)
		_ = m.conn.Close() // with requests under way
		if i == 10 {
			if err := os.Rename(m.out("log"), m.out("log")); err != nil {
				t.Fatal(err)
			}
		}
		m.connect(t)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(m.out("log"))
	if err != nil || string(b) != strings.Repeat("0123456789abcde\n", lines) {
		t.Errorf("%d bytes, want %d, %v", len(b), 16*lines, err)
	}
}

func TestReadOnlyShareIsRefusedByTheHost(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	m := mount(t, dir, Options{ReadOnly: true})
	for what, err := range map[string]error{
		"write": os.WriteFile(m.in("f"), nil, 0o600), "create": os.WriteFile(m.in("g"), nil, 0o600), "chmod": os.Chmod(m.in("f"), 0o777),
		"remove": os.Remove(m.in("f")), "rename": os.Rename(m.in("f"), m.in("g")), "mkdir": os.Mkdir(m.in("d"), 0o700),
		"truncate": os.Truncate(m.in("f"), 0), "link": os.Link(m.in("f"), m.in("g")), "symlink": os.Symlink("f", m.in("g")),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b, err := os.ReadFile(m.in("f")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestOneFileIsShared(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"it", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	m := mount(t, filepath.Join(dir, "it"), Options{})
	entries, err := os.ReadDir(m.guest)
	if err != nil || len(entries) != 1 || entries[0].Name() != FileName {
		t.Errorf("%v, %v", entries, err)
	}
	for _, name := range []string{"it", "other"} {
		if _, err := os.ReadFile(m.in(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s, in the directory of what is shared: %v", name, err)
		}
	}
	if err := os.WriteFile(m.in(FileName), []byte("new"), 0o600); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "it")); err != nil || string(b) != "new" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.WriteFile(m.in("more"), nil, 0o600); err == nil {
		t.Error("a file was made beside it")
	}
	if err := os.Remove(m.in(FileName)); err == nil {
		t.Error("it was removed")
	}
}

func TestChangesOfTheHostAreSeen(t *testing.T) {
	m := mount(t, t.TempDir(), Options{})
	if err := os.WriteFile(m.out("f"), []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := os.Stat(m.in("f")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadDir(m.guest); err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("changed", i+1)
		if err := os.WriteFile(m.out("f"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.out(text), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for {
			b, err := os.ReadFile(m.in("f"))
			fi, serr := os.Stat(m.in("f"))
			_, nerr := os.Stat(m.in(text))
			if err == nil && serr == nil && nerr == nil && string(b) == text && fi.Size() == int64(len(text)) {
				break
			}
			if time.Since(began) > time.Second {
				t.Fatalf("not seen within a second: %q %v, %v, %v", b, err, fi, nerr)
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("seen after %s", time.Since(began))
		time.Sleep(170 * time.Millisecond)
	}
}
