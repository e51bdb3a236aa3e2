package hostport

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// A socket on all addresses of the host is to answer from the one that was asked:
// the kernel would take another one, and the client drop the answer. Datagrams come
// with that address (ip(7), IP_PKTINFO; ipv6(7), IPV6_RECVPKTINFO), and answers are
// sent with it.

// maxControl is the room for the control message of a datagram, bytes.
var maxControl = unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// tellLocal has datagrams come with the address that they were sent to.
func tellLocal(c *net.UDPConn, v6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, 1))
	})
	return errors.Join(err, set)
}

// localOf returns the address that a datagram was sent to, and the control message
// for its answer; none if it did not come with one.
func localOf(control []byte) (netip.Addr, []byte) {
	msgs, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range msgs {
		switch h := m.Header; {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			local := [4]byte(m.Data[4:8]) // ipi_spec_dst: of this host, whatever the datagram says
			return netip.AddrFrom4(local), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local})
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			local := netip.AddrFrom16([16]byte(m.Data[:16]))
			if local.IsMulticast() { // nobody sends from there
				return netip.Addr{}, nil
			}
			return local, unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16()})
		}
	}
	return netip.Addr{}, nil
}
