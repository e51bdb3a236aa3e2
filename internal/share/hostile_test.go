package share

import (
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/sftp"
)

// client asks a share what no sshfs would.
type client struct {
	t    *testing.T
	conn net.Conn
}

func newClient(t *testing.T, path string, o Options) *client {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	server, conn := pair(t)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(server) }()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
		_ = s.Close()
	})
	return &client{t, conn}
}

// ask sends one request and returns the answer.
func (c *client) ask(t sftp.Type, fill func(*sftp.Packet)) (sftp.Type, *sftp.Parser) {
	c.t.Helper()
	p := sftp.NewPacket(nil, t, 7)
	fill(p)
	if _, err := c.conn.Write(p.Bytes()); err != nil {
		c.t.Fatal(err)
	}
	b, err := sftp.ReadPacket(c.conn, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	got, id, rest := sftp.Parse(b)
	if id != 7 {
		c.t.Fatalf("answer to %d", id)
	}
	return got, rest
}

// status asks for what is answered by a status.
func (c *client) status(t sftp.Type, parts ...any) sftp.Code {
	c.t.Helper()
	got, rest := c.ask(t, func(p *sftp.Packet) {
		for _, part := range parts {
			switch v := part.(type) {
			case string:
				p.String(v)
			case uint32:
				p.Uint32(v)
			case sftp.Attrs:
				p.Attrs(&v)
			}
		}
	})
	if got != sftp.StatusReply {
		c.t.Errorf("request %d %v is answered by type %d", t, parts, got)
		return sftp.OK
	}
	return sftp.Code(rest.Uint32())
}

func TestNothingOutsideIsReached(t *testing.T) {
	above := t.TempDir()
	dir := filepath.Join(above, "shared")
	for _, err := range []error{
		os.Mkdir(dir, 0o755), os.WriteFile(above+"/secret", []byte("secret"), 0o644), os.Mkdir(above+"/outside", 0o755),
		os.Symlink("../secret", dir+"/link"), os.Symlink(above, dir+"/up"), os.Symlink("/", dir+"/root"), os.Symlink("/proc/self/fd", dir+"/fds"),
		os.WriteFile(dir+"/f", []byte("x"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t, dir, Options{})
	none := sftp.Attrs{}
	mode := sftp.Attrs{Flags: sftp.AttrMode, Mode: 0o4777}
	write := uint32(sftp.FlagWrite | sftp.FlagCreate)
	for _, path := range []string{
		"..", "../secret", "/../secret", "a/../../secret", "./../secret", "up/secret", "root/etc/passwd", "link", "/link", "fds/3", "f/../../secret",
		"//../secret", ".", "up", "f\x00", "f/", "up/outside/new", strings.Repeat("a/", 2000),
	} {
		for what, code := range map[string]sftp.Code{
			"open":  c.status(sftp.Open, path+"/x", uint32(sftp.FlagRead), none),
			"make":  c.status(sftp.Open, path+"/x", write, none),
			"mkdir": c.status(sftp.Mkdir, path+"/../made", none),
		} {
			if code == sftp.OK && path != "." && path != "f/" {
				t.Errorf("%s below %q", what, path)
			}
		}
		if path == "f/" || path == "." {
			continue
		}
		if code := c.status(sftp.Open, path, uint32(sftp.FlagRead), none); code == sftp.OK {
			t.Errorf("open %q", path)
		}
		if code := c.status(sftp.Rename, "f", path+"/stolen"); code == sftp.OK {
			t.Errorf("rename to %q", path)
		}
		if code := c.status(sftp.Extended, sftp.ExtHardlink, path+"/secret", "got"); code == sftp.OK {
			t.Errorf("link of %q", path)
		}
	}
	_ = c.status(sftp.Setstat, "link", mode)
	if fi, err := os.Stat(above + "/secret"); err != nil || fi.Mode() != 0o644 {
		t.Errorf("a link was followed: %v, %v", fi, err)
	}
	entries, err := os.ReadDir(above)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
	if left, err := os.ReadDir(above + "/outside"); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// Who shares a directory may have others who write to it, and who change it
// while it is looked at.
func TestRacesLeadNowhere(t *testing.T) {
	above := t.TempDir()
	dir := filepath.Join(above, "shared")
	for _, err := range []error{
		os.MkdirAll(dir+"/d", 0o755), os.MkdirAll(above+"/outside", 0o755), os.WriteFile(above+"/outside/f", []byte("secret"), 0o644),
		os.WriteFile(dir+"/d/f", []byte("inside"), 0o644), os.Symlink("../outside", dir+"/l"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir+"/d", unix.AT_FDCWD, dir+"/l", unix.RENAME_EXCHANGE)
			}
		}
	})
	c := newClient(t, dir, Options{})
	opened := 0
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		_ = c.status(sftp.Remove, "d/made")
		kind, rest := c.ask(sftp.Open, func(p *sftp.Packet) {
			p.String("d/f")
			p.Uint32(sftp.FlagRead)
			p.Attrs(&sftp.Attrs{})
		})
		if kind != sftp.HandleReply {
			continue
		}
		opened++
		h := rest.String(sftp.MaxHandle)
		kind, rest = c.ask(sftp.Read, func(p *sftp.Packet) {
			p.String(h)
			p.Uint64(0)
			p.Uint32(100)
		})
		if text := rest.String(100); kind != sftp.DataReply || text != "inside" {
			t.Fatalf("type %d, %q", kind, text)
		}
		_ = c.status(sftp.Close, h)
		if kind, _ = c.ask(sftp.Open, func(p *sftp.Packet) {
			p.String("d/made")
			p.Uint32(sftp.FlagWrite | sftp.FlagCreate)
			p.Attrs(&sftp.Attrs{})
		}); kind == sftp.HandleReply {
			_ = c.status(sftp.Setstat, "d/made", sftp.Attrs{Flags: sftp.AttrMode, Mode: 0o600})
		}
	}
	close(stop)
	swapping.Wait()
	entries, err := os.ReadDir(above + "/outside")
	if err != nil || len(entries) != 1 || opened == 0 {
		t.Errorf("%v, %v; opened %d times", entries, err, opened)
	}
}

func TestOnlyFilesAndDirectoriesAreOpened(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	names := []string{"fifo", "socket"}
	if unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) == nil {
		names = append(names, "null")
	}
	c := newClient(t, dir, Options{})
	for _, name := range names {
		for _, flags := range []uint32{sftp.FlagRead, sftp.FlagWrite, sftp.FlagWrite | sftp.FlagCreate | sftp.FlagTrunc} {
			if code := c.status(sftp.Open, name, flags, sftp.Attrs{}); code != sftp.PermissionDenied {
				t.Errorf("open %s with %d: code %d", name, flags, code)
			}
		}
	}
}

func TestNoBitsThatLendRights(t *testing.T) {
	dir := t.TempDir()
	c := newClient(t, dir, Options{})
	a := sftp.Attrs{Flags: sftp.AttrMode, Mode: 0o6755}
	if kind, _ := c.ask(sftp.Open, func(p *sftp.Packet) {
		p.String("tool")
		p.Uint32(sftp.FlagWrite | sftp.FlagCreate)
		p.Attrs(&a)
	}); kind != sftp.HandleReply {
		t.Fatalf("type %d", kind)
	}
	for range 2 {
		if fi, err := os.Stat(dir + "/tool"); err != nil || fi.Mode() != 0o755 {
			t.Errorf("%v, %v", fi.Mode(), err)
		}
		if code := c.status(sftp.Setstat, "tool", a); code != sftp.OK {
			t.Errorf("code %d", code)
		}
	}
}

func TestOtherUsersSeeTheirFilesAsRoots(t *testing.T) {
	m := ids{uid: 1000, gid: 100}
	if u, g := m.toGuest(1000, 100); u != 0 || g != 0 {
		t.Errorf("%d:%d", u, g)
	}
	if u, g := m.toGuest(0, 101); u != nobody || g != nobody {
		t.Errorf("%d:%d", u, g)
	}
	st := &unix.Stat_t{Uid: 1000, Gid: 5}
	for _, c := range []struct {
		uid, gid uint32
		u, g     int
		err      error
	}{
		{0, nobody, -1, -1, nil}, {unchanged, 0, -1, 100, nil}, {7, unchanged, 0, 0, unix.EPERM}, {0, 7, 0, 0, unix.EPERM},
	} {
		u, g, err := m.toHost(c.uid, c.gid, st)
		if !errors.Is(err, c.err) || err == nil && (u != c.u || g != c.g) {
			t.Errorf("%d:%d: %d:%d, %v", c.uid, c.gid, u, g, err)
		}
	}
	if u, g := (ids{root: true}).toGuest(1000, 5); u != 1000 || g != 5 {
		t.Errorf("%d:%d", u, g)
	}
}

// What is older or newer than the format can say has the nearest time, and not one
// of another century.
func TestTimesBeyondTheFormat(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for sec, want := range map[int64]uint32{
		-1: 0, -1 << 40: 0, 0: 0, 2e9: 2e9, math.MaxUint32: math.MaxUint32, math.MaxUint32 + 1: math.MaxUint32, 1 << 40: math.MaxUint32,
	} {
		at := unix.Timespec{Sec: sec}
		if a := s.attrs(&unix.Stat_t{Atim: at, Mtim: at}); a.Atime != want || a.Mtime != want {
			t.Errorf("%d: read %d, written %d; want %d", sec, a.Atime, a.Mtime, want)
		}
	}
}

func TestBadPacketsEndTheConnection(t *testing.T) {
	for _, b := range [][]byte{
		{0, 0, 0, 0},
		{255, 255, 255, 255},
		{0, 0, 0, 5, byte(sftp.Open), 0, 0, 0, 1},
		append([]byte{0, 0, 0, 9, byte(sftp.Read), 0, 0, 0, 1}, 255, 255, 255, 255),
	} {
		c := newClient(t, t.TempDir(), Options{})
		if _, err := c.conn.Write(b); err != nil {
			t.Fatal(err)
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.conn.Read(make([]byte, 100)); n > 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v: %d bytes, %v", b, n, err)
		}
	}
}

func TestAGuestHasNotAllDescriptors(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, dir, Options{})
	n := 0
	for {
		kind, _ := c.ask(sftp.Open, func(p *sftp.Packet) {
			p.String("f")
			p.Uint32(sftp.FlagRead)
			p.Attrs(&sftp.Attrs{})
		})
		if kind != sftp.HandleReply {
			break
		}
		if n++; n > maxOpen {
			t.Fatal("there is no limit")
		}
	}
	if got := c.status(sftp.Mkdir, "still", sftp.Attrs{}); got != sftp.OK {
		t.Errorf("code %d", got)
	}
}

func TestAFullDiskIsTold(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a small file system: needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	var (
		mu   sync.Mutex
		told []error
	)
	m := mount(t, dir, Options{Trouble: func(err error) { mu.Lock(); defer mu.Unlock(); told = append(told, err) }})
	fill := func() error {
		f, err := os.Create(m.in("big"))
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 2<<20))
		return errors.Join(err, f.Sync(), f.Close())
	}
	if err := fill(); !errors.Is(err, syscall.EIO) {
		t.Errorf("2 MiB into a share of 1 MiB: %v", err)
	}
	mu.Lock()
	if !slices.ContainsFunc(told, func(err error) bool { return errors.Is(err, unix.ENOSPC) && strings.Contains(err.Error(), dir) }) {
		t.Errorf("told: %v", told)
	}
	mu.Unlock()
	if err := os.Remove(m.in("big")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.in("small"), make([]byte, 500<<10), 0o600); err != nil {
		t.Errorf("after room was made: %v", err)
	}
}
