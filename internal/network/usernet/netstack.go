package usernet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/dns"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/vmm"
)

const nic = tcpip.NICID(1)

// What one guest can have open at a time. They bound what a hostile guest
// costs its host, and are more than an ordinary one uses.
//
// A TCP connection takes its two buffers here and two of hostport's, all of which a
// guest can fill: 4096 of them take 0.9 GiB, where the stack's own sizes would let
// them have 32 GiB. (The sockets of the host have their limit in net.ipv4.tcp_mem.)
const (
	maxTCP     = 4096
	maxFast    = 128  // of them have fastBuffer, the first ones
	maxUDP     = 1024 // pairs of an address of the guest and one outside; the idlest makes room
	maxDialing = 256  // TCP connections that wait for the other side
	maxPings   = 64   // echo requests that wait for an answer
)

// Sizes of a TCP connection's buffers, for each direction, bytes. The window is half
// of one.
const (
	fastBuffer = 1 << 20
	slowBuffer = 64 << 10
	slowCopy   = 16 << 10 // of the relay
)

const (
	dialTimeout = 30 * time.Second
	udpIdleDNS  = 10 * time.Second // one question, one answer
	timeWait    = 5 * time.Second  // on a link that reorders nothing
)

var (
	gatewayAddr = netip.MustParseAddr(network.Gateway)
	dnsAddr     = netip.MustParseAddr(network.DNS)
	guestPrefix = netip.MustParsePrefix(network.GuestAddress)
	hostAddr    = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// netstack is the network that one guest sees: a gateway, a DNS server, and
// behind them the host's sockets.
type netstack struct {
	stack *stack.Stack
	link  *link

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex
	closed bool

	limits hostport.Limits
	pings  chan struct{}
	dialer net.Dialer
	gate   *gate
	dns    *dns.Server
}

// newNetstack connects a new network to a link, of which it fills in the addresses,
// and starts to serve it.
func newNetstack(l *link, cfg *network.Config) (_ *netstack, err error) {
	if l.mac, err = linkAddress(network.GatewayMAC); err != nil {
		return nil, err
	}
	if l.guest, err = linkAddress(vmm.GuestMAC); err != nil {
		return nil, err
	}
	l.mtu = mtu
	n := &netstack{
		link:   l,
		limits: hostport.Limits{TCP: make(chan struct{}, maxTCP), UDP: hostport.NewFlows(maxUDP)},
		pings:  make(chan struct{}, maxPings),
		dialer: net.Dialer{Timeout: dialTimeout},
		gate:   newGate(cfg.Egress),
	}
	n.link.echo = n.ping
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.configure(); err != nil {
		n.cancel()
		n.stack.Destroy()
		return nil, fmt.Errorf("set up the user-mode network: %w", err)
	}
	if err := n.serveDNS(cfg); err != nil {
		n.cancel()
		n.stack.Destroy()
		n.tasks.Wait()
		return nil, err
	}
	n.tasks.Go(n.link.serve)
	return n, nil
}

func (n *netstack) configure() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := n.stack.CreateNIC(nic, n.link); err != nil {
		return stackError(err)
	}
	for _, a := range []netip.Addr{gatewayAddr, dnsAddr} {
		pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: stackAddr(a).WithPrefix()}
		if err := n.stack.AddProtocolAddress(nic, pa, stack.AddressProperties{}); err != nil {
			return stackError(err)
		}
	}
	// Packets to any address are taken, and answered from that address.
	if err := n.stack.SetPromiscuousMode(nic, true); err != nil {
		return stackError(err)
	}
	if err := n.stack.SetSpoofing(nic, true); err != nil {
		return stackError(err)
	}
	subnet, err := tcpip.NewSubnet(stackAddr(guestPrefix.Masked().Addr()), tcpip.MaskFromBytes(net.CIDRMask(guestPrefix.Bits(), 32)))
	if err != nil {
		return fmt.Errorf("make subnet of %s: %w", guestPrefix, err)
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}})
	// The guest is known, and need not be up yet to be written to.
	if err := n.stack.AddStaticNeighbor(nic, ipv4.ProtocolNumber, stackAddr(guestPrefix.Addr()), n.link.guest); err != nil {
		return stackError(err)
	}
	sack, wait := tcpip.TCPSACKEnabled(true), tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &wait,
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: slowBuffer, Max: fastBuffer},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: slowBuffer, Max: fastBuffer},
	} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return stackError(err)
		}
	}
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, slowBuffer, maxDialing, n.forwardTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.forwardUDP).HandlePacket)
	return nil
}

// serveDNS opens the name server's UDP port on the link; forwardTCP knows the other
// one, so that its connections count as others do.
func (n *netstack) serveDNS(cfg *network.Config) error {
	addr := tcpip.FullAddress{NIC: nic, Addr: stackAddr(dnsAddr), Port: dns.Port}
	u, err := gonet.DialUDP(n.stack, &addr, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("open the DNS server's port: %w", err)
	}
	n.dns = dns.New(dns.Config{Servers: cfg.Servers, Egress: cfg.Egress, Host: gatewayAddr, Learn: n.gate.learn})
	n.tasks.Go(func() { n.dns.ServeUDP(n.ctx, u) })
	n.tasks.Go(func() { n.dns.Relearn(n.ctx) })
	return nil
}

// allowed says where a packet of the guest's to addr really goes, if it may.
func (n *netstack) allowed(addr netip.Addr) (netip.Addr, bool) {
	dst, ok := destination(addr)
	return dst, ok && n.gate.allows(addr)
}

// enter counts a goroutine that the stack has started among the tasks; false:
// the network is being closed.
func (n *netstack) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.tasks.Add(1)
	}
	return !n.closed
}

// refuse lets nothing new begin.
func (n *netstack) refuse() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
}

// close ends every connection and waits for all that serves the network.
func (n *netstack) close() error {
	n.refuse()
	n.cancel()
	err := n.link.frames.Close() // first: what writes to a guest that does not read goes on
	n.stack.Close()
	done := make(chan struct{})
	go func() {
		n.tasks.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			// Not before: it waits for connections, of which more may come
			// into being until here.
			n.stack.Destroy()
			return err
		case <-time.After(closePause):
			// A connection that came into being while the stack was closed was
			// missed, and would wait for its guest for two minutes.
			n.stack.Close()
		}
	}
}

// closePause is how often a stack is closed that has connections left.
const closePause = 50 * time.Millisecond

// stackError makes an error of the stack's own kind.
func stackError(err tcpip.Error) error { return fmt.Errorf("%s", err.String()) }

func stackAddr(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

func netAddr(a tcpip.Address) netip.Addr { return netip.AddrFrom4(a.As4()) }
