package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// errNoReset: the kernel has none of what resets a connection from outside of
// the process that has it.
var errNoReset = errors.New("the guest's kernel cannot (CONFIG_INET_DIAG_DESTROY, module tcp_diag); install one that can: fcvm setup kernel")

// resetTCP ends the TCP connections to other machines, whose other ends know
// nothing of this one: whoever waits at one of them would do so until a time
// limit of its own. Reads, writes and connects fail at once (ECONNABORTED).
// Listeners stay, and so do connections of which both ends are here: local are
// this machine's own addresses.
//
// Only those of the guest's own network namespace are ended, which is that of
// the container too.
func resetTCP(local map[netip.Addr]bool) (int, error) {
	reset := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := listTCP(family)
		if err != nil {
			return reset, fmt.Errorf("list the TCP connections of the original: %w", noReset(err))
		}
		for _, s := range found {
			if !leadsOut(s, local) {
				continue
			}
			switch err := destroy(s); {
			case err == nil:
				reset++
			case errors.Is(err, unix.ENOENT): // it has ended meanwhile
			default:
				return reset, fmt.Errorf("reset the TCP connection to %s: %w", peerOf(s), noReset(err))
			}
		}
	}
	return reset, nil
}

func noReset(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return errors.Join(errNoReset, err)
	}
	return err
}

// listTCP may see a connection twice or not at all if others come and go
// meanwhile; the kernel then says so.
func listTCP(family uint8) ([]*netlink.Socket, error) {
	const attempts = 5
	for n := 1; ; n++ {
		found, err := netlink.SocketDiagTCP(family)
		if !errors.Is(err, netlink.ErrDumpInterrupted) || n == attempts {
			return found, err
		}
	}
}

// States of a TCP connection (include/net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpCloseWait   = 8
	tcpLastAck     = 9
	tcpClosing     = 11
)

// leadsOut reports whether somebody here may wait for somebody elsewhere.
func leadsOut(s *netlink.Socket, local map[netip.Addr]bool) bool {
	switch s.State {
	case tcpEstablished, tcpSynSent, tcpSynRecv, tcpCloseWait:
	case tcpFinWait1, tcpFinWait2, tcpLastAck, tcpClosing:
		// No process has it any more: its own time limits end it. Linux before
		// 6.11 would keep it for ever if it were told to end.
		if s.INode == 0 {
			return false
		}
	default:
		return false
	}
	peer := peerOf(s)
	return !peer.IsLoopback() && !local[peer]
}

func peerOf(s *netlink.Socket) netip.Addr {
	addr, _ := netip.AddrFromSlice(s.ID.Destination)
	return addr.Unmap()
}

// localAddresses are all of this machine.
func localAddresses() (map[netip.Addr]bool, error) {
	found, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the guest's addresses: %w", err)
	}
	local := map[netip.Addr]bool{}
	for _, a := range found {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			local[addr.Unmap()] = true
		}
	}
	return local, nil
}

// destroy ends one connection; its cookie keeps it from being another's.
// https://www.man7.org/linux/man-pages/man7/sock_diag.7.html
func destroy(s *netlink.Socket) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(diagRequest(s))
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// diagRequest is a struct inet_diag_req_v2 that names one connection.
func diagRequest(s *netlink.Socket) []byte {
	source, peer := s.ID.Source, s.ID.Destination
	if s.Family == unix.AF_INET {
		source, peer = source.To4(), peer.To4()
	}
	native := binary.NativeEndian
	b := []byte{s.Family, unix.IPPROTO_TCP, 0, 0}
	b = native.AppendUint32(b, ^uint32(0)) // in any state
	b = append(b, byte(s.ID.SourcePort>>8), byte(s.ID.SourcePort), byte(s.ID.DestinationPort>>8), byte(s.ID.DestinationPort))
	for _, ip := range [][]byte{source, peer} {
		b = append(b, append(ip[:len(ip):len(ip)], make([]byte, 16-len(ip))...)...)
	}
	for _, word := range []uint32{s.ID.Interface, s.ID.Cookie[0], s.ID.Cookie[1]} {
		b = native.AppendUint32(b, word)
	}
	return b
}
