package usernet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/dns"
	"github.com/fcvm/fcvm/internal/network/hostport"
)

// guestConn is the stack's end of a TCP connection with the guest.
type guestConn struct {
	*gonet.TCPConn
	ep   tcpip.Endpoint
	fast bool // it has fastBuffer
}

// newGuestConn sizes a connection's buffers, for good. It is counted among
// limits.TCP.
func (n *netstack) newGuestConn(wq *waiter.Queue, ep tcpip.Endpoint) guestConn {
	c, size := guestConn{gonet.NewTCPConn(wq, ep), ep, len(n.limits.TCP) <= maxFast}, int64(slowBuffer)
	if c.fast {
		size = fastBuffer
	}
	ep.SocketOptions().SetSendBufferSize(size, true)
	ep.SocketOptions().SetReceiveBufferSize(size, true)
	return c
}

// CopyBuffer implements hostport.HalfConn.
func (c guestConn) CopyBuffer() int {
	if c.fast {
		return hostport.MaxCopyBuffer
	}
	return slowCopy
}

// Abort ends the connection with a reset, also one that is closed.
func (c guestConn) Abort() { c.ep.Abort() }

// lingerTime is how long a guest is given to take what was written before Close: it
// may be paused for a while.
const lingerTime = 2 * time.Minute

// Close returns when the guest has taken all that was written, or resets the
// connection: whoever counts connections has to count it until then.
func (c guestConn) Close() error {
	err := c.TCPConn.Close()
	deadline := time.Now().Add(lingerTime)
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 100*time.Millisecond) {
		switch tcp.EndpointState(c.ep.State()) {
		case tcp.StateFinWait2, tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
			return err // the end was acknowledged
		}
		time.Sleep(pause)
	}
	c.Abort()
	return err
}

// destination is where a connection to addr really goes: the gateway stands
// for the host's loopback; and what no packet on a wire may be sent to, what
// belongs to this link, or what is this host's alone, goes nowhere.
func destination(addr netip.Addr) (netip.Addr, bool) {
	if addr == gatewayAddr {
		return hostAddr, true
	}
	if guestPrefix.Contains(addr) || !network.Routable(addr) {
		return netip.Addr{}, false
	}
	return addr, true
}

// forwardTCP connects the guest to where it wants to. The guest's SYN is
// answered once the other side has answered, so that a refusal is a refusal.
func (n *netstack) forwardTCP(r *tcp.ForwarderRequest) {
	if !n.enter() {
		r.Complete(false)
		return
	}
	defer n.tasks.Done()
	id := r.ID()
	addr := netAddr(id.LocalAddress)
	toDNS := addr == dnsAddr && id.LocalPort == dns.Port
	dst, ok := n.allowed(addr)
	if !ok && !toDNS || !hostport.Acquire(n.limits.TCP) {
		r.Complete(true)
		return
	}
	defer hostport.Release(n.limits.TCP)
	if toDNS {
		if c, ok := n.complete(r); ok {
			n.dns.ServeConn(n.ctx, c)
		}
		return
	}
	out, err := n.dialer.DialContext(n.ctx, "tcp4", netip.AddrPortFrom(dst, id.LocalPort).String())
	if err != nil {
		r.Complete(true) // refused; also where the other side was silent for too long
		return
	}
	host := hostport.HostConn{TCPConn: out.(*net.TCPConn)}
	guest, ok := n.complete(r)
	if !ok {
		host.Abort()
		return
	}
	hostport.RelayTCP(n.ctx, guest, host)
}

// complete answers the guest's SYN.
func (n *netstack) complete(r *tcp.ForwarderRequest) (guestConn, bool) {
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	r.Complete(false)
	if err != nil {
		return guestConn{}, false
	}
	return n.newGuestConn(&wq, ep), true
}

// asClient is the address from which the guest sees a client: its own, if the
// guest's answers to it come back here, else the gateway's.
func asClient(client netip.Addr) tcpip.Address {
	if client.Is4() && network.Routable(client) && !guestPrefix.Contains(client) {
		return stackAddr(client)
	}
	return stackAddr(gatewayAddr)
}

// DialTCP connects to a port of the guest, as a client of it.
func (n *netstack) DialTCP(ctx context.Context, client netip.Addr, port uint16) (hostport.HalfConn, error) {
	var wq waiter.Queue
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return nil, stackError(terr)
	}
	c := n.newGuestConn(&wq, ep)
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Bind(tcpip.FullAddress{NIC: nic, Addr: asClient(client)})
	if terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: stackAddr(guestPrefix.Addr()), Port: port})
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Close()
			return nil, ctx.Err()
		case <-ready:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		ep.Close()
		return nil, fmt.Errorf("connect to the guest's port %d: %w", port, stackError(terr))
	}
	return c, nil
}
