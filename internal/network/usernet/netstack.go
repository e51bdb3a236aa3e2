package usernet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm"
)

const nic = tcpip.NICID(1)

// gatewayMAC is the gateway's address on the link, the same in every VM.
const gatewayMAC = "02:fc:00:00:00:02"

// What one guest can have open at a time. They bound what a hostile guest
// costs its host, and are more than an ordinary one uses.
const (
	maxTCP      = 4096
	maxUDP      = 1024 // pairs of an address of the guest and one outside
	maxDialing  = 256  // TCP connections that wait for the other side
	maxResolver = 64   // DNS questions
)

const (
	dialTimeout = 30 * time.Second
	udpIdle     = 90 * time.Second // RFC 4787, REQ-5, asks for two minutes of a router
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

	tcpSlots chan struct{}
	udpSlots chan struct{}
	dialer   net.Dialer
	resolver *resolver
}

// newNetstack connects a new network to a carrier and starts to serve it.
func newNetstack(carrier frames, mtu int) (*netstack, error) {
	mac, err := linkAddress(gatewayMAC)
	if err != nil {
		return nil, err
	}
	guestMAC, err := linkAddress(vmm.GuestMAC)
	if err != nil {
		return nil, err
	}
	n := &netstack{
		link:     &link{frames: carrier, mtu: uint32(mtu), mac: mac, guest: guestMAC},
		tcpSlots: make(chan struct{}, maxTCP),
		udpSlots: make(chan struct{}, maxUDP),
		dialer:   net.Dialer{Timeout: dialTimeout},
		resolver: newResolver(),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.configure(); err != nil {
		n.cancel()
		n.stack.Destroy()
		return nil, fmt.Errorf("set up the user-mode network: %w", err)
	}
	if err := n.serveDNS(); err != nil {
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
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &wait} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return stackError(err)
		}
	}
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, maxDialing, n.forwardTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.forwardUDP).HandlePacket)
	return nil
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

// close ends every connection and waits for all that serves the network.
func (n *netstack) close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	err := n.link.frames.Close() // first: what writes to a guest that does not read goes on
	n.stack.Destroy()
	done := make(chan struct{})
	go func() {
		n.tasks.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
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
