package usernet

import (
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/fcvm/fcvm/internal/network/dns"
	"github.com/fcvm/fcvm/internal/network/hostport"
)

// forwardUDP is called with the first packet from a port of the guest to an
// address; it returns with an endpoint made, which takes the ones after it.
func (n *netstack) forwardUDP(r *udp.ForwarderRequest) {
	id := r.ID()
	dst, ok := n.allowed(netAddr(id.LocalAddress))
	if !ok {
		return
	}
	host, err := n.dialer.DialContext(n.ctx, "udp4", netip.AddrPortFrom(dst, id.LocalPort).String())
	if err != nil {
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		_ = host.Close()
		return
	}
	guest := gonet.NewUDPConn(&wq, ep)
	flow := n.limits.UDP.Begin(func() { _ = guest.Close(); _ = host.Close() })
	n.tasks.Go(func() {
		defer flow.Done()
		idle := hostport.UDPIdle
		if id.LocalPort == dns.Port {
			idle = udpIdleDNS
		}
		hostport.RelayUDP(n.ctx, guest, host, flow, idle)
	})
}

// DialUDP makes a socket that is connected to a port of the guest.
func (n *netstack) DialUDP(client netip.Addr, port uint16) (net.Conn, error) {
	local := tcpip.FullAddress{NIC: nic, Addr: asClient(client)}
	guest := tcpip.FullAddress{NIC: nic, Addr: stackAddr(guestPrefix.Addr()), Port: port}
	return gonet.DialUDP(n.stack, &local, &guest, ipv4.ProtocolNumber)
}
