package cli

import (
	"net"
	"os"
	"regexp"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/snapshot"
)

// What a memory server that was killed has left goes with the next command.
func TestKilledMemoryServersAreSwept(t *testing.T) {
	h := newHost(t)
	l := paths.Layout{Data: h.data, Runtime: t.TempDir()}
	h.env["FCVM_RUNTIME_DIR"] = l.Runtime
	if err := os.MkdirAll(l.MemorySockets(), 0o700); err != nil {
		t.Fatal(err)
	}
	listen := func(id string) (string, *net.UnixListener) {
		path, err := l.MemorySocket(id)
		if err != nil {
			t.Fatal(err)
		}
		s, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		s.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = s.Close() })
		return path, s
	}
	killed, server := listen("0123456789ab")
	_ = server.Close()
	served, _ := listen("0123456789ac")
	log, other := l.MemoryLog("0123456789ab"), l.MemorySockets()+"/other"
	for _, path := range []string{log, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.ok("ls")
	for path, stays := range map[string]bool{killed: false, log: false, served: true, other: true} {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v; stays: %t", path, err, stays)
		}
	}
}

// serving is a host with a snapshot of this name, whose memory somebody serves.
func serving(t *testing.T, name string) (*host, paths.Layout, snapshot.Manifest) {
	t.Helper()
	h := newHost(t)
	l := paths.Layout{Data: h.data, Runtime: t.TempDir()}
	h.env["FCVM_RUNTIME_DIR"] = l.Runtime
	m := h.snapshot(name, func(m *snapshot.Manifest) { m.Needs.Driver = "firecracker" })
	listenAt(t, l, m.ID)
	return h, l, m
}

// listenAt listens where the memory server of a snapshot does.
func listenAt(t *testing.T, l paths.Layout, id string) *net.UnixListener {
	t.Helper()
	socket, err := l.MemorySocket(id)
	if err == nil {
		err = os.MkdirAll(l.MemorySockets(), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// A second server of a snapshot leaves the log of the first alone.
func TestASecondMemoryServer(t *testing.T) {
	h, l, m := serving(t, "warm")
	const said = "what the first one has said"
	if err := os.WriteFile(l.MemoryLog(m.ID), []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	h.env[detachedEnv] = "1"
	h.says("fcvm: open a memory server: a memory server is already running at .*", "memory-server", "-d", "warm")
	if b, err := os.ReadFile(l.MemoryLog(m.ID)); err != nil || string(b) != said {
		t.Errorf("the log of the first: %q, %v", b, err)
	}
}

// A server's log begins with the server, also with what was said before it had it.
func TestTheLogOfAMemoryServer(t *testing.T) {
	l := paths.Layout{Data: t.TempDir(), Runtime: t.TempDir()}
	a := newApp(System{})
	for _, line := range []string{"first", "second"} {
		log, err := a.memoryServerLog(l, "0123456789ab", true)
		if err != nil {
			t.Fatal(err)
		}
		log.line(line + ", early")
		log.begin()
		log.line(line + ", late")
		log.close()
	}
	b, err := os.ReadFile(l.MemoryLog("0123456789ab"))
	if err != nil || !regexp.MustCompile(`^\S+ second, early\n\S+ second, late\n$`).Match(b) {
		t.Errorf("%q, %v", b, err)
	}
}

// Who cannot remove a snapshot because its memory is served hears so.
func TestASnapshotWhoseMemoryIsServedStays(t *testing.T) {
	h, l, m := serving(t, "warm")
	held, err := snapshotsOf(l).Hold(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	h.says("fcvm: remove snapshot warm: snapshot is in use by its memory server; end that with: fcvm memory-server stop warm", "snapshot", "rm", "warm")
}
