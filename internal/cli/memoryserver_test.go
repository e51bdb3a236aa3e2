package cli

import (
	"net"
	"os"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
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
