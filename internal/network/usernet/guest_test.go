package usernet

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm"
)

// guest is the other end of the link, as the tests use it. Connections and
// listeners are closed by the tests.
type guest interface {
	dial(t testing.TB, network, addr string) (net.Conn, error)
	listen(t testing.TB, port uint16) net.Listener
	listenPacket(t testing.TB, port uint16) net.PacketConn
}

// attach starts the backend as a driver with these abilities would, and
// checks at the test's end that nothing is left of it.
func attach(t testing.TB, caps vmm.Capabilities, ports ...network.Port) network.Attachment {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	a, err := New().Start(t.Context(), network.Config{ID: "0123456789ab", Ports: ports, Capabilities: caps})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, leaks)
	})
	return a
}

// stackGuest is a guest with a network stack of its own, which speaks QEMU's
// framing on the attachment's socket.
type stackGuest struct{ stack *stack.Stack }

func newStackGuest(t testing.TB, a network.Attachment) *stackGuest {
	t.Helper()
	conn, err := net.FileConn(a.Net().Socket)
	if err != nil {
		t.Fatal(err)
	}
	mac, _ := linkAddress(vmm.GuestMAC)
	peer, _ := linkAddress(gatewayMAC)
	l := &link{frames: newStreamFrames(conn), mtu: uint32(a.MTU()), mac: mac, guest: peer}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	must := func(err tcpip.Error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.CreateNIC(nic, l))
	own := stackAddr(guestPrefix.Addr()).WithPrefix()
	must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: own}, stack.AddressProperties{}))
	onLink := tcpip.AddressWithPrefix{Address: stackAddr(guestPrefix.Masked().Addr()), PrefixLen: guestPrefix.Bits()}.Subnet()
	s.SetRouteTable([]tcpip.Route{
		{Destination: onLink, NIC: nic},
		{Destination: tcpip.AddressWithPrefix{Address: stackAddr(netip.IPv4Unspecified())}.Subnet(), Gateway: stackAddr(gatewayAddr), NIC: nic},
	})
	served := make(chan struct{})
	go func() { defer close(served); l.serve() }()
	t.Cleanup(func() {
		_ = conn.Close()
		<-served
		s.Destroy()
	})
	return &stackGuest{stack: s}
}

func fullAddress(t testing.TB, addr string) tcpip.FullAddress {
	t.Helper()
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return tcpip.FullAddress{NIC: nic, Addr: stackAddr(a.Addr()), Port: a.Port()}
}

func (g *stackGuest) dial(t testing.TB, protocol, addr string) (net.Conn, error) {
	t.Helper()
	to := fullAddress(t, addr)
	if protocol == network.UDP {
		return gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, to, ipv4.ProtocolNumber)
}

func (g *stackGuest) listen(t testing.TB, port uint16) net.Listener {
	t.Helper()
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: nic, Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (g *stackGuest) listenPacket(t testing.TB, port uint16) net.PacketConn {
	t.Helper()
	c, err := gonet.DialUDP(g.stack, &tcpip.FullAddress{NIC: nic, Port: port}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
