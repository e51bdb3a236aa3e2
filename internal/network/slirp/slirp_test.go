package slirp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

func TestMain(m *testing.M) { nettest.Main(m, nil) }

var tapVMM = vmm.Capabilities{TapNetwork: true}

func TestConformance(t *testing.T) {
	if _, err := exec.LookPath(program); err != nil {
		t.Skip("slirp4netns is not installed (Debian package slirp4netns)")
	}
	nettest.Run(t, nettest.Suite{
		New:          func() network.Backend { return New() },
		Attach:       map[string]vmm.Capabilities{"tap": tapVMM},
		HostLoopback: true, LinkLocal: true, OneByOne: true, LosesResets: true, KeepsSource: true, MaxDatagram: 9000,
	})
}

// The program confines itself, and where it cannot, as in many containers, it serves
// all the same.
func TestHardening(t *testing.T) {
	nettest.Need(t)
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skip("slirp4netns is not installed (Debian package slirp4netns)")
	}
	if got := hardened(t.Context(), path); !slices.Equal(got, hardening) {
		t.Skipf("this slirp4netns knows no more than %q", got)
	}
	for _, tt := range []struct {
		name             string
		fails            string // an option with which it does not start
		sandbox, seccomp bool
	}{
		{"all", "--no-such-option", true, true},
		{"no mounts", "--enable-sandbox", false, true},
		{"nothing", "--enable-seccomp", false, false},
		{"an old program", "--help", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *%s*) exit 1;; esac\nexec %s \"$@\"\n", tt.fails, path)
			if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			a := nettest.Start(t, New(), network.Config{Capabilities: tapVMM})
			g := nettest.NewGuest(t, a)
			l := listen(t)
			defer func() { _ = l.Close() }()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			c, err := g.Dial("tcp4", net.JoinHostPort(network.Gateway, port))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			proc := fmt.Sprintf("/proc/%d/", a.(*attachment).slirp.PID())
			status, err := os.ReadFile(proc + "status")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(string(status), "Seccomp:\t2"); got != tt.seccomp {
				t.Errorf("system calls are filtered: %t", got)
			}
			_, err = os.Stat(proc + "root/usr")
			if got := errors.Is(err, os.ErrNotExist); got != tt.sandbox {
				t.Errorf("it has a file system of its own: %t, %v", got, err)
			}
		})
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, err := range []error{New().Available(), func() error {
		_, err := New().Start(t.Context(), network.Config{Capabilities: tapVMM})
		return err
	}()} {
		if !errors.Is(err, network.ErrUnavailable) || !strings.Contains(err.Error(), "install the package slirp4netns") || !strings.Contains(err.Error(), "--network usernet") {
			t.Errorf("%v", err)
		}
	}
}

// What the program cannot do is refused, with the backends that can.
func TestRefused(t *testing.T) {
	v6 := network.Port{HostIP: netip.IPv6Loopback(), GuestPort: 80, Protocol: network.TCP}
	for name, cfg := range map[string]network.Config{
		"usernet or bridge":     {Ports: []network.Port{v6}},
		"use --network usernet": {Egress: network.Egress{Restricted: true}},
		"use --network bridge":  {IP: netip.MustParseAddr("10.201.0.9")},
	} {
		cfg.Capabilities = tapVMM
		if _, err := New().Start(t.Context(), cfg); !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}
