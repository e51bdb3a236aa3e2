package bridge

import (
	"net/netip"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/vmm"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var tapVMM = vmm.Capabilities{TapNetwork: true}

func TestConformance(t *testing.T) {
	nettest.Run(t, nettest.Suite{
		New:       func() network.Backend { return New(netip.Prefix{}) },
		Attach:    map[string]vmm.Capabilities{"tap": tapVMM},
		HostNames: true, KeepsSource: true, Ports6: true, GuestIPv6: true, Ping: true, Egress: true, MaxDatagram: 65507,
	})
}
