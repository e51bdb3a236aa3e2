package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/dns"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
)

// uplinkName is the VM's interface on the bridge, in its namespace.
const uplinkName = "eth0"

var (
	guest4   = netip.MustParsePrefix(network.GuestAddress)
	guest6   = netip.MustParsePrefix(network.GuestAddress6)
	gateway4 = netip.MustParseAddr(network.Gateway)
	gateway6 = netip.MustParseAddr(network.Gateway6)
	dnsAddr  = netip.MustParseAddr(network.DNS)
)

// setUpNamespace makes the VM's side: the tap, addresses, rules, and the
// sockets of the name server.
func (a *attachment) setUpNamespace() error {
	if err := a.ns.Do(a.configure); err != nil {
		return fmt.Errorf("set up the VM's network namespace: %w", err)
	}
	if err := a.makeRules(); err != nil {
		return fmt.Errorf("set up the VM's network namespace: %w", err)
	}
	a.vmm = vmm.Net{MAC: vmm.GuestMAC, MTU: a.host.mtu, Tap: network.TapName}
	return nil
}

// configure is called inside of the namespace.
func (a *attachment) configure() error {
	// Before the interfaces: they take it over.
	if err := writeSysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if a.ip6.IsValid() {
		if err := writeSysctl(allForwarding6, "1"); err != nil {
			return err
		}
	} else if err := writeSysctl(disableIPv6("all"), "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := a.configureUplink(); err != nil {
		return fmt.Errorf("configure %s: %w", uplinkName, err)
	}
	if err := a.configureTap(); err != nil {
		return fmt.Errorf("configure %s: %w", network.TapName, err)
	}
	addr := netip.AddrPortFrom(dnsAddr, dns.Port).String()
	if a.dnsUDP, err = net.ListenPacket("udp4", addr); err != nil {
		return fmt.Errorf("open the name server's port: %w", err)
	}
	if a.dnsTCP, err = net.Listen("tcp4", addr); err != nil {
		return fmt.Errorf("open the name server's port: %w", err)
	}
	return nil
}

func (a *attachment) configureUplink() error {
	l, err := netlink.LinkByName(uplinkName)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(l, a.host.mtu); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	addrs := []netip.Prefix{netip.PrefixFrom(a.ip, a.host.subnet.Bits())}
	gateways := []netip.Addr{gateway(a.host.subnet)}
	if a.ip6.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(a.ip6, a.host.subnet6.Bits()))
		gateways = append(gateways, a.host.addr6(gateways[0]))
	}
	for _, p := range addrs {
		if err := addAddr(netlink.AddrAdd, l, p); err != nil {
			return fmt.Errorf("give it the address %s: %w", p, err)
		}
	}
	for _, g := range gateways {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: g.AsSlice()}); err != nil {
			return fmt.Errorf("route through %s: %w", g, err)
		}
	}
	return nil
}

func (a *attachment) configureTap() error {
	if err := netns.AddTap(network.TapName); err != nil {
		return err
	}
	l, err := netlink.LinkByName(network.TapName)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(network.GatewayMAC)
	if err != nil {
		return err
	}
	guestMAC, err := net.ParseMAC(vmm.GuestMAC)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetHardwareAddr(l, mac), netlink.LinkSetMTU(l, a.host.mtu), netlink.LinkSetUp(l)); err != nil {
		return err
	}
	addrs := []netip.Prefix{netip.PrefixFrom(gateway4, guest4.Bits()), netip.PrefixFrom(dnsAddr, 32)}
	guests := []netip.Addr{guest4.Addr()}
	if a.ip6.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(gateway6, guest6.Bits()))
		guests = append(guests, guest6.Addr())
	}
	for _, p := range addrs {
		if err := addAddr(netlink.AddrAdd, l, p); err != nil {
			return fmt.Errorf("give it the address %s: %w", p, err)
		}
	}
	for _, g := range guests {
		// The guest is known, and need not be asked for.
		n := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: g.AsSlice(), HardwareAddr: guestMAC}
		if err := netlink.NeighSet(n); err != nil {
			return fmt.Errorf("make %s known: %w", g, err)
		}
	}
	return nil
}

// pair is the guest's address and the VM's, of one family.
type pair struct {
	guest, gateway netip.Addr // on the tap
	vm, host       netip.Addr // on the bridge
	subnet         netip.Prefix
}

func (a *attachment) pairs() []pair {
	list := []pair{{guest4.Addr(), gateway4, a.ip, gateway(a.host.subnet), a.host.subnet}}
	if a.ip6.IsValid() {
		list = append(list, pair{guest6.Addr(), gateway6, a.ip6, a.host.addr6(gateway(a.host.subnet)), a.host.subnet6})
	}
	return list
}

// never are networks that no guest reaches through its network, beside those
// that are never forwarded: see network.Routable.
var never = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	guest4.Masked(), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"), guest6.Masked(),
}

// makeRules makes the namespace's table.
func (a *attachment) makeRules() error {
	conn, err := nftables.New(nftables.WithNetNSFd(a.ns.Fd()))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tap, up := iif(network.TapName), iif(uplinkName)
	c := chains{conn, conn.AddTable(hostTable())}
	pre := c.base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	post := c.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	for _, p := range a.pairs() {
		c.add(pre, tap, daddr.addr(p.gateway), nat(expr.NATTypeDestNAT, p.host, 0))
		c.add(pre, up, daddr.addr(p.vm), nat(expr.NATTypeDestNAT, p.guest, 0))
		c.add(post, oif(uplinkName), saddr.addr(p.guest), nat(expr.NATTypeSourceNAT, p.vm, 0))
	}
	in := c.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	c.add(in, iif("lo"), accept())
	// Who answers a guest that claims another address sends what the guest chose
	// there. (The kernel answers a ping of IPv6 by the interface on which it came.)
	c.add(in, tap, saddr.notAddr(guest4.Addr()), drop())
	for _, n := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		c.add(in, protocol(n), accept())
	}
	for _, n := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.add(in, tap, daddr.addr(dnsAddr), protocol(n), dport(dns.Port), accept())
	}
	fwd := c.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	c.add(fwd, state(expr.CtStateBitINVALID), drop())
	for _, p := range a.pairs() {
		c.add(fwd, tap, saddr.notAddr(p.guest), drop())
	}
	// Before all that is to be said of the first packet only.
	c.add(fwd, state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	for _, n := range never {
		c.add(fwd, tap, daddr.within(n), reject())
	}
	if a.cfg.Isolated {
		for _, p := range a.pairs() {
			c.add(fwd, tap, daddr.within(p.subnet), daddr.notAddr(p.host), reject())
			c.add(fwd, up, saddr.within(p.subnet), saddr.notAddr(p.host), drop())
		}
	}
	c.add(fwd, up, accept())
	if err := a.addEgress(c, fwd, tap); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables' rules (kernel modules nf_tables, nft_nat, nft_reject_inet): %w", err)
	}
	return nil
}

// addEgress adds what the guest may begin.
func (a *attachment) addEgress(c chains, fwd *nftables.Chain, tap exprs) error {
	e := &a.cfg.Egress
	if !e.Restricted {
		c.add(fwd, tap, accept())
		return nil
	}
	for _, p := range a.pairs() {
		a.addBridgeEgress(c, fwd, tap, p)
	}
	for _, p := range e.Prefixes {
		c.add(fwd, tap, daddr.within(p), accept())
	}
	if len(e.Domains) > 0 {
		var err error
		if a.learned, err = addLearned(c, fwd, tap, a.ns.Fd()); err != nil {
			return err
		}
	}
	c.add(fwd, tap, reject())
	return nil
}

// addBridgeEgress adds which of the host and other VMs the guest may speak to. A
// network opens them that is the bridge's, or a part of it: one that is wider says
// nothing of them. The host is opened by its name, or its address alone.
func (a *attachment) addBridgeEgress(c chains, fwd *nftables.Chain, tap exprs, p pair) {
	e := &a.cfg.Egress
	if e.AllowsHost() || e.Lists(p.host) {
		c.add(fwd, tap, daddr.addr(p.host), accept())
	}
	c.add(fwd, tap, daddr.addr(p.host), reject())
	for _, n := range e.Prefixes {
		if n.Bits() >= p.subnet.Bits() && p.subnet.Contains(n.Addr()) {
			c.add(fwd, tap, daddr.within(n), accept())
		}
	}
	c.add(fwd, tap, daddr.within(p.subnet), reject())
}
