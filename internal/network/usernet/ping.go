package usernet

import (
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fcvm/fcvm/internal/network/hostport"
)

// pingTimeout is how long the answer to an echo request is waited for.
const pingTimeout = 5 * time.Second

// ping sends an echo request of the guest's on, by a socket that the host
// gives to users whose group is in net.ipv4.ping_group_range. Without one, the
// request is lost, as it may be on any network.
func (n *netstack) ping(ip header.IPv4) {
	size := int(ip.TotalLength())
	if !ip.IsValid(len(ip)) || ip.More() || ip.FragmentOffset() != 0 || size > int(n.link.mtu) {
		return
	}
	icmp := header.ICMPv4(ip[ip.HeaderLength():size])
	if len(icmp) < header.ICMPv4MinimumSize || icmp.Type() != header.ICMPv4Echo {
		return
	}
	addr := netAddr(ip.DestinationAddress())
	dst, ok := n.allowed(addr)
	if !ok || ip.SourceAddress() != stackAddr(guestPrefix.Addr()) || !hostport.Acquire(n.pings) {
		return
	}
	if !n.enter() {
		hostport.Release(n.pings)
		return
	}
	request := append(header.ICMPv4(nil), icmp...)
	go func() {
		defer n.tasks.Done()
		defer hostport.Release(n.pings)
		if payload, err := n.exchangeEcho(dst, request); err == nil {
			n.replyEcho(addr, request.Ident(), payload)
		}
	}()
}

// exchangeEcho returns the reply to a request, without its IP header. The
// socket puts an identifier of its own into both.
func (n *netstack) exchangeEcho(dst netip.Addr, request header.ICMPv4) (header.ICMPv4, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-n.ctx.Done():
			_ = conn.Close()
		case <-stop:
		}
	}()
	_ = conn.SetDeadline(time.Now().Add(pingTimeout))
	if _, err := conn.WriteTo(request, &net.UDPAddr{IP: dst.AsSlice()}); err != nil {
		return nil, err
	}
	buf := make([]byte, maxFrame)
	for {
		size, _, err := conn.ReadFrom(buf)
		if err != nil {
			return nil, err
		}
		reply := header.ICMPv4(buf[:size])
		if size >= header.ICMPv4MinimumSize && reply.Type() == header.ICMPv4EchoReply && reply.Sequence() == request.Sequence() {
			return reply, nil
		}
	}
}

// replyEcho gives the guest a reply that came from addr.
func (n *netstack) replyEcho(addr netip.Addr, ident uint16, reply header.ICMPv4) {
	const headers = header.EthernetMinimumSize + header.IPv4MinimumSize
	size := header.IPv4MinimumSize + len(reply)
	if size > int(n.link.mtu) {
		return
	}
	b := make([]byte, headers+len(reply))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: n.link.mac, DstAddr: n.link.guest, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(size), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: stackAddr(addr), DstAddr: stackAddr(guestPrefix.Addr()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	icmp := header.ICMPv4(b[headers:])
	copy(icmp, reply)
	icmp.SetIdent(ident)
	icmp.SetChecksum(0)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	_ = n.link.write(vnetHeader{}, [][]byte{b})
}
