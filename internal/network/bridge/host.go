package bridge

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

// linkPrefix begins the names of VMs' interfaces on the host; their id follows.
const linkPrefix = "fc"

// member is one VM on the bridge. What is known of it is in its interface's
// alias, which everybody on the host can read (ip link), and which goes with
// it: there is no other list.
type member struct {
	link netlink.Link
	id   string
	ip   netip.Addr
	name string
}

// aliasFormat has room for every VM's name within the 255 bytes of an alias.
const aliasFormat = "fcvm id=%s ip=%s name=%s"

func (m *member) alias() string { return fmt.Sprintf(aliasFormat, m.id, m.ip, m.name) }

func parseAlias(l netlink.Link) (member, bool) {
	m := member{link: l}
	var ip string
	if _, err := fmt.Sscanf(l.Attrs().Alias, aliasFormat, &m.id, &ip, &m.name); err != nil {
		return member{}, false
	}
	var err error
	m.ip, err = netip.ParseAddr(ip)
	return m, err == nil
}

// maxDumps is how often a list of the kernel's is asked for that changes meanwhile.
const maxDumps = 20

// whole returns a list of the kernel's that was not changed while it was read: in
// another one there may be things missing, which nobody must take for gone.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	var err error
	for range maxDumps {
		var all []T
		if all, err = list(); err == nil {
			return all, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return nil, err
}

func routes(family int) ([]netlink.Route, error) {
	return whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
}

// members lists the VMs on the bridge, also those whose supervisor has died.
func members() ([]member, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var list []member
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Name, linkPrefix) || l.Type() != "veth" {
			continue
		}
		if m, ok := parseAlias(l); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

// presence is held by the living: an abstract socket, which belongs to the
// network namespace that the bridge is in, and goes with its process. Process
// ids would not do: supervisors may be in containers.
func presence(id string) string { return "@fcvm-bridge-" + id }

func (m *member) alive() bool {
	c, err := net.Dial("unixgram", presence(m.id))
	if err != nil {
		return !errors.Is(err, syscall.ECONNREFUSED)
	}
	_ = c.Close()
	return true
}

// host is the bridge as it is, or as it is to be.
type host struct {
	link    netlink.Link // nil: there is none yet
	subnet  netip.Prefix
	subnet6 netip.Prefix // not valid: this host has no IPv6
	mtu     int
}

// gateway is the bridge's own address, the first of its network.
func gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// subnet6 is a network of unique local addresses (RFC 4193) that belongs to
// the IPv4 one; a VM has the same last bytes in both.
func subnet6(p netip.Prefix) netip.Prefix {
	b := [16]byte{0xfd}
	sum := sha256.Sum256([]byte("fcvm " + p.String()))
	copy(b[1:8], sum[:7])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

func (h *host) addr6(ip netip.Addr) netip.Addr {
	b, v4 := h.subnet6.Addr().As16(), ip.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

// findHost looks at the bridge, if it is there, else at whether it could be.
// subnet may not be valid: then any that the bridge has, or the default.
func findHost(subnet netip.Prefix) (*host, error) {
	h := &host{subnet: subnet, mtu: uplinkMTU()}
	if !h.subnet.IsValid() {
		h.subnet = netip.MustParsePrefix(DefaultSubnet)
	}
	l, err := netlink.LinkByName(LinkName)
	var absent netlink.LinkNotFoundError
	switch {
	case errors.As(err, &absent):
		err = h.checkRoutes()
	case err != nil:
		err = fmt.Errorf("find %s: %w", LinkName, err)
	default:
		h.link = l
		err = h.adopt(subnet)
	}
	if err != nil {
		return nil, err
	}
	if h.hasIPv6() {
		h.subnet6 = subnet6(h.subnet)
	}
	return h, nil
}

// hasIPv6 reports whether the bridge can have addresses of IPv6: the kernel may be
// without, or told to give none.
func (h *host) hasIPv6() bool {
	conf := "default"
	if h.link != nil {
		conf = LinkName
	}
	_, err := os.Stat(filepath.Join(sysctlDir, "ipv6"))
	return err == nil && !sysctlOn(disableIPv6(conf))
}

// adopt takes the network that the bridge has.
func (h *host) adopt(want netip.Prefix) error {
	if h.link.Type() != "bridge" {
		return fmt.Errorf("%w: %s is there, and no bridge: rename it", network.ErrCollision, LinkName)
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(h.link, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", LinkName, err)
	}
	if len(addrs) == 0 {
		return nil // somebody was interrupted: it is finished now
	}
	p, ok := prefixOf(addrs[0].IPNet)
	if !ok {
		return fmt.Errorf("read the address of %s: %v", LinkName, addrs[0])
	}
	h.subnet = p.Masked()
	if want.IsValid() && want != h.subnet {
		return fmt.Errorf("%w: %s has the network %s, and VMs use it: stop them to have %s, or leave --subnet out", network.ErrCollision, LinkName, h.subnet, want)
	}
	return nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

// isDefault recognizes the way to the world: a default route, or the two halves of
// it by which VPNs come before one.
func isDefault(p netip.Prefix) bool { return p.Bits() <= 1 }

// checkRoutes refuses a network that this host reaches elsewhere.
func (h *host) checkRoutes() error {
	list, err := routes(unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	// Routes of other tables may come first, as those of VPNs do.
	if found, err := netlink.RouteGetWithOptions(gateway(h.subnet).AsSlice(), &netlink.RouteGetOptions{FIBMatch: true}); err == nil {
		list = append(list, found...)
	}
	for _, r := range list {
		p, ok := prefixOf(r.Dst)
		if !ok || isDefault(p) || !p.Overlaps(h.subnet) {
			continue
		}
		via := fmt.Sprint("interface ", r.LinkIndex)
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			via = l.Attrs().Name
		}
		return fmt.Errorf("%w: the network %s of %s overlaps the route to %s on %s: choose another one with --subnet, or FCVM_BRIDGE_SUBNET", network.ErrCollision, h.subnet, LinkName, p, via)
	}
	return nil
}

// uplinkMTU is the MTU of the way to the world, bytes: a guest's packets are
// not larger. Smaller ones behind it are found out by the guest.
func uplinkMTU() int {
	const ethernet = 1500
	list, err := routes(unix.AF_INET)
	if err != nil {
		return ethernet
	}
	mtu := 0
	for _, r := range list {
		if p, ok := prefixOf(r.Dst); ok && !isDefault(p) {
			continue
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err == nil && l.Attrs().MTU >= minMTU && (mtu == 0 || l.Attrs().MTU < mtu) {
			mtu = l.Attrs().MTU
		}
	}
	if mtu == 0 {
		return ethernet
	}
	return min(mtu, maxMTU)
}

// Limits of a guest's MTU, bytes: what IPv6 needs, and what a frame can have.
const (
	minMTU = 1280
	maxMTU = 65520
)

// make makes the bridge, if there is none.
func (h *host) make() error {
	if h.link == nil {
		b := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		b.Name, b.MTU = LinkName, h.mtu
		off := false
		b.MulticastSnooping = &off
		if err := netlink.LinkAdd(b); err != nil {
			return fmt.Errorf("make %s (kernel module bridge): %w", LinkName, err)
		}
		h.link = b
	} else {
		h.mtu = h.link.Attrs().MTU
	}
	addrs := []netip.Prefix{netip.PrefixFrom(gateway(h.subnet), h.subnet.Bits())}
	if h.subnet6.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(h.addr6(gateway(h.subnet)), h.subnet6.Bits()))
	}
	for _, a := range addrs {
		if err := addAddr(netlink.AddrReplace, h.link, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", LinkName, a, err)
		}
	}
	if err := netlink.LinkSetUp(h.link); err != nil {
		return fmt.Errorf("take %s up: %w", LinkName, err)
	}
	return nil
}

// addAddr gives a link an address without asking others whether they have it.
func addAddr(add func(netlink.Link, *netlink.Addr) error, l netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return add(l, addr)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// choose finds a VM's address: the one that is asked for, or the first that
// is free.
func (h *host) choose(want netip.Addr, taken []member) (netip.Addr, error) {
	used := map[netip.Addr]string{gateway(h.subnet): "the host"}
	for _, m := range taken {
		used[m.ip] = "VM " + m.name
	}
	if want.IsValid() {
		switch who, taken := used[want]; {
		case !h.subnet.Contains(want) || want == h.subnet.Addr() || want == last(h.subnet):
			return netip.Addr{}, fmt.Errorf("%w: --ip %s: it is no address of %s, the network of %s", vm.ErrInvalid, want, h.subnet, LinkName)
		case taken:
			return netip.Addr{}, fmt.Errorf("%w: --ip %s: %s has it", network.ErrCollision, want, who)
		}
		return want, nil
	}
	for a := gateway(h.subnet).Next(); h.subnet.Contains(a) && a != last(h.subnet); a = a.Next() {
		if _, taken := used[a]; !taken {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all addresses of %s are in use: stop VMs, or choose a larger network with --subnet", network.ErrCollision, h.subnet)
}

// last is a network's broadcast address.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// ParseSubnet reads the network of --subnet: IPv4, private or not, with room
// for VMs; an empty string is none.
func ParseSubnet(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	guest := netip.MustParsePrefix(network.GuestAddress)
	switch {
	case err != nil || !p.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("network %q: it is an IPv4 network as %s", s, DefaultSubnet)
	case p.Bits() < 8 || p.Bits() > 29:
		return netip.Prefix{}, fmt.Errorf("network %s: it has a length from /8 to /29", s)
	case p.Overlaps(guest):
		return netip.Prefix{}, fmt.Errorf("network %s: it overlaps %s, which every guest has inside", s, guest.Masked())
	case !network.Routable(p.Addr()):
		return netip.Prefix{}, fmt.Errorf("network %s: no packet can be sent there", s)
	}
	return p.Masked(), nil
}
