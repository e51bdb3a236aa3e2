package usernet

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// frames carries Ethernet frames between the stack and the guest's VMM.
// WriteFrame may be called concurrently; ReadFrame by one goroutine.
type frames interface {
	// ReadFrame reads one frame into b, which has room for maxFrame bytes.
	ReadFrame(b []byte) (int, error)
	// WriteFrame writes one frame, given in parts.
	WriteFrame(parts [][]byte) error
	// Close makes calls that wait return.
	Close() error
}

const (
	// maxFrame is the room for a frame of a guest's, bytes. One of its MTU fits.
	maxFrame = buffer.MaxChunkSize
	// largeFrame: frames from here on, bytes, are handed to the stack in the memory
	// that they were read into. Others are copied, so that what waits to be read in
	// the stack takes little more memory than it has bytes.
	largeFrame = maxFrame / 2
)

// link is the stack's side of the one cable there is, to the guest. What the
// guest sends is checked here: the stack sees IPv4 and ARP that is meant for
// it, from the one address that the guest has.
type link struct {
	frames frames
	vnet   bool // frames that are written have a virtio-net header before them
	mtu    uint32
	mac    tcpip.LinkAddress // of the gateway
	guest  tcpip.LinkAddress
	echo   func(header.IPv4) // is given echo requests that go beyond the link; nil: they are dropped

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*link)(nil)

// serve delivers the guest's frames until the carrier is closed.
func (l *link) serve() {
	room := buffer.NewViewSize(maxFrame)
	defer func() { room.Release() }()
	for {
		n, err := l.frames.ReadFrame(room.AsSlice())
		if err != nil {
			return
		}
		b := room.AsSlice()[:n]
		if !l.wanted(b) {
			continue
		}
		l.mu.RLock()
		d := l.dispatcher
		l.mu.RUnlock()
		if d == nil {
			continue
		}
		protocol := header.Ethernet(b).Type()
		var payload *buffer.View
		if n < largeFrame {
			payload = buffer.NewViewWithData(b[header.EthernetMinimumSize:])
		} else {
			payload, room = room, buffer.NewViewSize(maxFrame)
			payload.CapLength(n)
			payload.TrimFront(header.EthernetMinimumSize)
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(payload)})
		d.DeliverNetworkPacket(protocol, pkt)
		pkt.DecRef()
	}
}

// wanted says whether the stack is to see a frame.
func (l *link) wanted(b []byte) bool {
	if len(b) < header.EthernetMinimumSize {
		return false
	}
	eth := header.Ethernet(b)
	dst := eth.DestinationAddress()
	if eth.SourceAddress() != l.guest || dst != l.mac && dst != header.EthernetBroadcastAddress {
		return false
	}
	payload := b[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		// The stack takes every address for its own, so that it can stand in
		// for the world. On the link it has only two.
		arp := header.ARP(payload)
		return arp.IsValid() && (arp.Op() == header.ARPReply || isOwn(arp.ProtocolAddressTarget()))
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(payload)
		if len(ip) < header.IPv4MinimumSize {
			return false
		}
		// For the same reason it would answer a ping to anyone.
		dst := ip.DestinationAddress()
		if ip.TransportProtocol() != header.ICMPv4ProtocolNumber || isOwn(dst.AsSlice()) {
			return true
		}
		if l.echo != nil {
			l.echo(ip)
		}
	}
	return false
}

func isOwn(b []byte) bool {
	a, ok := netip.AddrFromSlice(b)
	return ok && (a == gatewayAddr || a == dnsAddr)
}

// WritePackets implements stack.LinkEndpoint. It waits for a guest that does
// not read: nothing is dropped that the carrier can hold back.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		dst := pkt.EgressRoute.RemoteLinkAddress
		eth := header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize))
		eth.Encode(&header.EthernetFields{SrcAddr: l.mac, DstAddr: dst, Type: pkt.NetworkProtocolNumber})
		var h vnetHeader
		if l.vnet {
			h = leaveChecksum(pkt)
		}
		if err := l.write(h, pkt.AsSlices()); err != nil {
			return n, &tcpip.ErrClosedForSend{}
		}
		n++
	}
	return n, nil
}

// write writes one frame, given in parts, behind its header if the carrier wants one.
func (l *link) write(h vnetHeader, parts [][]byte) error {
	if l.vnet {
		parts = append([][]byte{h[:]}, parts...)
	}
	return l.frames.WriteFrame(parts)
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// Capabilities implements stack.LinkEndpoint. Checksums of what comes in are
// not verified: it comes through this machine's memory, and a VMM's checksum
// offload leaves them unfinished. Those of what goes out are left to the guest, or
// its kernel's side of the tap, where there is a header to say so.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	c := stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
	if l.vnet {
		c |= stack.CapabilityTXChecksumOffload
	}
	return c
}

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// LinkAddress implements stack.LinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return l.mac }

// MaxHeaderLength implements stack.LinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// ARPHardwareType implements stack.LinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// The rest of stack.LinkEndpoint: the link does not change, headers are
// handled above, and the carrier is closed by whoever made the link.

func (l *link) SetMTU(uint32)                        {}
func (l *link) SetLinkAddress(tcpip.LinkAddress)     {}
func (l *link) AddHeader(*stack.PacketBuffer)        {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }
func (l *link) Wait()                                {}
func (l *link) Close()                               {}
func (l *link) SetOnCloseAction(func())              {}

func linkAddress(mac string) (tcpip.LinkAddress, error) {
	a, err := net.ParseMAC(mac)
	if err != nil {
		return "", fmt.Errorf("read link address: %w", err)
	}
	return tcpip.LinkAddress(a), nil
}
