package network

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/network/nettest"
)

// pathWith is a directory with nothing but these programs, as far as they are
// there.
func pathWith(t *testing.T, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range programs {
		if path, err := exec.LookPath(p); err == nil {
			if err := os.Symlink(path, filepath.Join(dir, p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// What cannot be is said before anything boots, with what can be done about it.
func TestMessages(t *testing.T) {
	nettest.Need(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, taken, _ := net.SplitHostPort(l.Addr().String())
	owner := fmt.Sprintf("(process %d)", os.Getpid())
	image := peerImage(t)
	root, user := account{}, account{user: true}
	without := account{user: true, env: []string{"PATH=" + pathWith(t, os.Getenv(envDriver), "qemu-system-x86_64", "qemu-system-aarch64", "mkfs.ext4")}}
	for _, tt := range []struct {
		name  string
		who   account
		flags string
		words string // separated by "|"
	}{
		{"port taken", user, "--network usernet -p " + taken + ":80", taken + "|port is already in use|another host port"},
		{"protocol", user, "--network usernet -p " + taken + ":80/sctp", `protocol "sctp"|tcp or udp`},
		{"port taken, slirp4netns", user, "--network slirp4netns -p 127.0.0.1:" + taken + ":80", taken + "|port is already in use"},
		{"port taken, bridge", root, "--network bridge -p " + taken + ":80", taken + "|port is already in use|" + owner},
		{"privileged port", user, "--network usernet -p 80:80", "0.0.0.0:80->80/tcp|not allowed|ip_unprivileged_port_start|higher host port|root"},
		{"privileged port, slirp4netns", user, "--network slirp4netns -p 80:80/udp", "0.0.0.0:80->80/udp|not allowed|root"},
		{"address of nobody", user, "--network usernet -p 203.0.113.9:8080:80", "203.0.113.9|does not have the address"},

		{"guest port", user, "-p 80:x", `80:x|guest port "x"|a number`},
		{"guest port 0", user, "-p 80:0", "guest port 0|1 to 65535"},
		{"guest port missing", user, "-p 80:", "guest port is missing|GUESTPORT[/tcp|udp]"},
		{"host port", user, "-p x:80", `x:80|host port "x"|a number`},
		{"host port too large", user, "-p 65536:80", `host port "65536"|65535`},
		{"host address", user, "-p 1.2.3:80:80", `host address "1.2.3"|not an IP address`},
		{"host address of IPv6", user, "-p [::1:80:80", "[HOSTIP]:HOSTPORT:GUESTPORT"},
		{"host address without brackets", user, "-p ::1:80:80", "brackets"},
		{"ranges", user, "-p 8000-8002:80-81", "8000-8002 are 3|80-81 are 2|the same length"},
		{"range backwards", user, "-p 8002-8000:80-82", "8002-8000|ends before it starts"},
		{"given twice", user, "-p 8080:80 -p 8080:81", "8080|given twice"},

		{"bridge as a user", user, "--network bridge", "bridge|needs root|--network usernet"},
		{"privileged as a user", user, "--mode privileged", "needs root|this host can do --network usernet"},
		{"missing program", without, "--network slirp4netns", "install the package slirp4netns|--network usernet"},
		{"unknown network", user, "--network tin-cans", "tin-cans|usernet|bridge|slirp4netns|none"},
		{"subnet collision", root, "--network bridge --subnet 198.51.100.0/25", "198.51.100.0/25|198.51.100.0/24|wan0|--subnet|FCVM_BRIDGE_SUBNET"},
		{"subnet", root, "--network bridge --subnet 10.0.2.0/24", "10.0.2.0/24|every guest"},
		{"fixed address in use", root, "--network bridge --ip 10.201.0.1", "10.201.0.1|the host has it"},
		{"fixed address elsewhere", root, "--network bridge --ip 192.0.2.1", "192.0.2.1|10.201.0.0/16|fcvmbr0"},
		{"fixed address, usernet", user, "--network usernet --ip 10.201.0.9", "--ip|--network bridge"},
		{"subnet, usernet", user, "--network usernet --subnet 10.9.0.0/24", "--subnet|--network bridge"},
		{"subnet as a user", user, "--subnet 10.9.0.0/24", "needs root|--network usernet"},
		{"address, rootless", root, "--mode rootless --ip 10.201.0.9", "--ip|needs root"},
		{"egress, slirp4netns", user, "--network slirp4netns --egress none", "--egress|slirp4netns|usernet or bridge"},
		{"IPv6, slirp4netns", user, "--network slirp4netns -p [::1]:0:80", "IPv6|usernet or bridge"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.flags, "bridge") && !tt.who.user && os.Getenv(envRealRoot) == "" {
				t.Skip("the bridge needs root")
			}
			args := append([]string{"run", "--vmm", os.Getenv(envDriver)}, strings.Fields(tt.flags)...)
			_, err := tt.who.try(t, append(args, image, "name", "127.0.0.1:1")...)
			if err == nil {
				t.Fatal("it runs")
			}
			text := strings.ReplaceAll(err.Error(), "/tcp|udp]", "/tcp/udp]")
			for _, w := range strings.Split(strings.ReplaceAll(tt.words, "/tcp|udp]", "/tcp/udp]"), "|") {
				if !strings.Contains(text, w) {
					t.Errorf("no %q in: %s", w, text)
				}
			}
			if strings.Count(text, "is not available") > 1 {
				t.Errorf("it is said twice: %s", text)
			}
			if !strings.Contains(text, "exit status 125") || strings.Contains(text, "goroutine ") {
				t.Errorf("another failure than fcvm's: %s", text)
			}
		})
	}
}
