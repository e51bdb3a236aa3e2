package bridge

import (
	"net"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
)

// A guest that claims another address has nobody answer there in its name: what it
// chose would get past its egress policy.
func TestClaimedSource(t *testing.T) {
	neighbour := nettest.Need(t)
	e, err := network.ParseEgress([]string{"none"})
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, network.Config{Egress: e})
	g := nettest.NewGuest(t, a)
	if err := g.AddAddr(network.GuestInterface, nettest.NeighbourAddr+"/32"); err != nil {
		t.Fatal(err)
	}
	query, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName("secret.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
	}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, network, source string
		to                    net.Addr
		packet                []byte
	}{
		{"name server", "udp4", nettest.NeighbourAddr + ":5353", &net.UDPAddr{IP: net.ParseIP(network.DNS), Port: 53}, query},
		{"ping", "ip4:icmp", nettest.NeighbourAddr, &net.IPAddr{IP: net.ParseIP(network.DNS)}, echo},
		{"ping of its own address", "ip4:icmp", nettest.NeighbourAddr, &net.IPAddr{IP: a.(network.Addressed).Addresses()[0].AsSlice()}, echo},
	} {
		t.Run(tt.name, func(t *testing.T) {
			victim := neighbour.ListenPacket(t, tt.network, tt.source)
			if _, err := g.ListenPacket(t, tt.network, tt.source).WriteTo(tt.packet, tt.to); err != nil {
				t.Fatal(err)
			}
			_ = victim.SetReadDeadline(time.Now().Add(time.Second))
			if n, from, err := victim.ReadFrom(make([]byte, 1500)); err == nil {
				t.Errorf("%d bytes have come from %s", n, from)
			}
		})
	}
	nettest.WantAnswer(t, g.Dial, "host.containers.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, network.Gateway)
}

// echo is an echo request of ICMP, with its checksum.
var echo = []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}
