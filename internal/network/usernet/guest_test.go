package usernet

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/vmm"
)

// attach starts the backend as a driver with these abilities would.
func attach(t testing.TB, caps vmm.Capabilities, ports ...network.Port) network.Attachment {
	t.Helper()
	return nettest.Start(t, New(), network.Config{Ports: ports, Capabilities: caps})
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
	peer, _ := linkAddress(network.GatewayMAC)
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

func (g *stackGuest) dial(protocol, addr string) (net.Conn, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	to := tcpip.FullAddress{NIC: nic, Addr: stackAddr(a.Addr()), Port: a.Port()}
	if protocol == network.UDP {
		return gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
