package hostport

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
)

// Who has a port of IPv6 is not who has that of IPv4, which may be the one that asks.
func TestPortOwner(t *testing.T) {
	proc := t.TempDir()
	table := func(name, addr, inode string) {
		t.Helper()
		line := fmt.Sprintf("  0: %s:1F90 %s:0000 0A 0:0 0:0 0 0 0 %s 1\n", addr, addr, inode)
		write(t, filepath.Join(proc, "net", name), line)
	}
	table("tcp", "00000000", "11")
	table("tcp6", "00000000000000000000000000000000", "12")
	table("udp6", "00000000000000000000000000000000", "13")
	for pid, inode := range map[string]string{"101": "11", "102": "12", "103": "13"} {
		write(t, filepath.Join(proc, pid, "comm"), "server\n")
		fd := filepath.Join(proc, pid, "fd")
		if err := os.Mkdir(fd, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:["+inode+"]", filepath.Join(fd, "3")); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		host, protocol string
		port           uint16
		want           string
	}{
		{"0.0.0.0", network.TCP, 8080, "server (process 101)"},
		{"::", network.TCP, 8080, "server (process 102)"},
		{"0.0.0.0", network.UDP, 8080, "server (process 103)"}, // a socket of both families
		{"::", network.UDP, 8080, "server (process 103)"},
		{"0.0.0.0", network.TCP, 8081, ""},
	} {
		p := network.Port{HostIP: netip.MustParseAddr(tt.host), HostPort: tt.port, Protocol: tt.protocol}
		if got := portOwner(proc, p); got != tt.want {
			t.Errorf("%s: %q, want %q", p, got, tt.want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
