package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// changeNetwork makes the interface what another network wants of it. What is
// the same in both stays untouched, as the container may have changed it.
func changeNetwork(old, n *agentapi.Network) error {
	l, err := netlink.LinkByName(n.Interface)
	if err != nil {
		return fmt.Errorf("find network interface %s: %w", n.Interface, err)
	}
	// It never grows: the device was made for what it had at first.
	if n.MTU > 0 && l.Attrs().MTU > n.MTU {
		if err := netlink.LinkSetMTU(l, n.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", n.Interface, n.MTU, err)
		}
	}
	for _, a := range []struct{ oldAddress, oldGateway, address, gateway string }{
		{old.Address, old.Gateway, n.Address, n.Gateway},
		{old.Address6, old.Gateway6, n.Address6, n.Gateway6},
	} {
		if a.oldAddress == a.address && a.oldGateway == a.gateway {
			continue
		}
		if err := removeAddress(l, a.oldAddress, a.oldGateway); err != nil {
			return err
		}
		if a.address == "" {
			continue
		}
		if err := configureAddress(l, a.address, a.gateway); err != nil {
			return err
		}
	}
	return nil
}

// removeAddress undoes configureAddress.
func removeAddress(l netlink.Link, address, gateway string) error {
	if gateway != "" {
		err := netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gateway)})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route through %s: %w", gateway, err)
		}
	}
	if address == "" {
		return nil
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if err := netlink.AddrDel(l, addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take the address %s from %s: %w", address, l.Attrs().Name, err)
	}
	return nil
}

// forgetNeighbours drops what was learned of others' hardware addresses: those
// were the original's neighbours. What somebody has entered stays.
func forgetNeighbours() error {
	const entered = netlink.NUD_PERMANENT | netlink.NUD_NOARP
	found, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range found {
		if n.State&entered != 0 || (n.Family != unix.AF_INET && n.Family != unix.AF_INET6) {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget the neighbour %s: %w", n.IP, err)
		}
	}
	return nil
}

// announce tells whoever is on the link that this address is here: a
// gratuitous ARP request, RFC 5227, 3. Its loss does no harm, since others ask.
func announce(iface, address string) error {
	l, err := netlink.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find network interface %s: %w", iface, err)
	}
	prefix, err := netip.ParsePrefix(address)
	if err != nil || !prefix.Addr().Is4() || len(l.Attrs().HardwareAddr) != 6 {
		return nil // nothing that ARP is for
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce %s: %w", address, err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{
		Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: l.Attrs().Index,
		Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	err = unix.Sendto(fd, arpRequest(l.Attrs().HardwareAddr, prefix.Addr()), 0, to)
	if err != nil && !errors.Is(err, unix.ENETDOWN) { // a guest without a container is not on the link yet
		return fmt.Errorf("announce %s: %w", address, err)
	}
	return nil
}

// arpRequest asks for one's own address (RFC 826).
func arpRequest(mac net.HardwareAddr, addr netip.Addr) []byte {
	ip := addr.As4()
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, their lengths, request
	b = append(append(b, mac...), ip[:]...)
	return append(append(b, make([]byte, 6)...), ip[:]...)
}

// bigEndian is a number as packet(7) wants it.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
