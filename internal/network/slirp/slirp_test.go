package slirp

import (
	"errors"
	"net/netip"
	"os/exec"
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
