package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/dns"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
)

// What clients whom the supervisor serves, as those on the host's loopback, can have
// open at a time to one VM.
const (
	maxTCP = 4096
	maxUDP = 1024
)

// attachment is one VM's network.
type attachment struct {
	cfg      network.Config
	host     *host
	ip       netip.Addr
	ip6      netip.Addr // not valid: no IPv6
	ns       *netns.Namespace
	presence net.PacketConn
	vmm      vmm.Net
	learned  *learnedSets // nil: the policy has no names
	dnsUDP   net.PacketConn
	dnsTCP   net.Listener
	limits   hostport.Limits // of all ports together

	ctx    context.Context // its end is the network's
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex
	ports  []*hostport.Opened
	closed bool

	closing  sync.Once
	closeErr error
}

var (
	_ network.Attachment = (*attachment)(nil)
	_ network.Publisher  = (*attachment)(nil)
	_ network.Addressed  = (*attachment)(nil)
	_ network.Renamer    = (*attachment)(nil)
)

// claim says that this VM's supervisor lives.
func (a *attachment) claim() error {
	c, err := net.ListenPacket("unixgram", presence(a.cfg.ID))
	if err != nil {
		return fmt.Errorf("claim the VM's place on %s: %w", LinkName, err)
	}
	a.presence = c
	return nil
}

// attach puts the VM on the bridge. It is called with the lock held.
func (a *attachment) attach(subnet netip.Prefix) error {
	if err := reconcile(); err != nil {
		return err
	}
	h, err := findHost(subnet)
	if err != nil {
		return err
	}
	a.host = h
	if err := h.make(); err != nil {
		return err
	}
	if err := h.forward(a.say); err != nil {
		return err
	}
	if err := makeTable(h); err != nil {
		return err
	}
	list, err := members()
	if err != nil {
		return err
	}
	if a.ip, err = h.choose(a.cfg.IP, list); err != nil {
		return err
	}
	if h.subnet6.IsValid() {
		a.ip6 = h.addr6(a.ip)
	}
	made := a.cfg.Phase.Begin("namespace")
	if a.ns, err = netns.New(); err != nil {
		return err
	}
	if err := a.addLink(); err != nil {
		return err
	}
	made()
	return publish(a.cfg.ID, a.portList(), a.targets())
}

func (a *attachment) say(line string) {
	if a.cfg.Say != nil {
		a.cfg.Say(line)
	}
}

// addLink makes the veth from the bridge into the namespace.
func (a *attachment) addLink() error {
	m := member{id: a.cfg.ID, ip: a.ip, name: a.cfg.Name}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: linkPrefix + a.cfg.ID, MTU: a.host.mtu, MasterIndex: a.host.link.Attrs().Index, Alias: m.alias(),
		},
		PeerName: uplinkName, PeerNamespace: netlink.NsFd(a.ns.Fd()), PeerHardwareAddr: linkAddr(a.ip),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("connect the VM to %s (kernel module veth): %w", LinkName, err)
	}
	l, err := netlink.LinkByName(veth.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", veth.Name, err)
	}
	// Where frames on bridges pass the host's rules (br_netfilter), a VM that
	// asks for its own published port is answered through its own port of the
	// bridge.
	if err := errors.Join(netlink.LinkSetHairpin(l, true), netlink.LinkSetAlias(l, m.alias()), netlink.LinkSetUp(l)); err != nil {
		return fmt.Errorf("take %s up: %w", veth.Name, err)
	}
	return nil
}

// linkAddr is the link address that belongs to a VM's IP address: whoever has
// that next has the same, and neighbours need not learn it anew.
func linkAddr(ip netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0xfc}, ip.AsSlice()...)
}

// serve answers the guest's questions, and clients on the host.
func (a *attachment) serve() error {
	a.ctx, a.cancel = context.WithCancel(context.Background())
	c := dns.Config{
		Servers: a.cfg.Servers, Egress: a.cfg.Egress, IPv6: a.ip6.IsValid(),
		Host: netip.MustParseAddr(network.Gateway),
	}
	if !a.cfg.Isolated {
		c.Names = a.others
	}
	if a.learned != nil {
		c.Learn = a.learn
		a.tasks.Go(func() { a.learned.expire(a.ctx) })
	}
	s := dns.New(c)
	a.tasks.Go(func() { s.ServeUDP(a.ctx, a.dnsUDP) })
	a.tasks.Go(func() { s.ServeTCP(a.ctx, a.dnsTCP) })
	a.tasks.Go(func() { s.Relearn(a.ctx) })
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.ports {
		a.servePort(o)
	}
	return nil
}

func (a *attachment) servePort(o *hostport.Opened) {
	a.tasks.Go(func() { o.Serve(a.ctx, a, a.limits) })
}

// DialTCP implements hostport.Guest. A program that does not listen on IPv4
// may do so on IPv6.
func (a *attachment) DialTCP(ctx context.Context, _ netip.Addr, port uint16) (hostport.HalfConn, error) {
	var d net.Dialer
	var err error
	for _, addr := range a.Addresses() {
		var c net.Conn
		if c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, port).String()); err == nil {
			return hostport.HostConn{TCPConn: c.(*net.TCPConn)}, nil
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	return nil, err
}

// DialUDP implements hostport.Guest.
func (a *attachment) DialUDP(_ netip.Addr, port uint16) (net.Conn, error) {
	return net.Dial("udp4", netip.AddrPortFrom(a.ip, port).String())
}

// others finds other VMs by their name, or their name and ".fcvm".
func (a *attachment) others(name string) []netip.Addr {
	name = strings.TrimSuffix(name, ".fcvm")
	if strings.Contains(name, ".") {
		return nil
	}
	list, err := members()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, m := range list {
		if strings.EqualFold(m.name, name) {
			addrs = append(addrs, m.ip)
			if a.host.subnet6.IsValid() {
				addrs = append(addrs, a.host.addr6(m.ip))
			}
		}
	}
	return addrs
}

// learn lets the addresses of a name through that the policy allows. A name's
// owner must not open the way to the host or to other VMs.
func (a *attachment) learn(addrs []netip.Addr) {
	addrs, err := network.NotOwn(addrs)
	if err != nil {
		return
	}
	var outside []netip.Addr
	for _, addr := range addrs {
		if addr = addr.Unmap(); !a.host.subnet.Contains(addr) && !a.host.subnet6.Contains(addr) {
			outside = append(outside, addr)
		}
	}
	a.learned.add(outside)
}

// Publish implements network.Publisher.
func (a *attachment) Publish(ctx context.Context, p network.Port) ([]network.Port, error) {
	opened, err := hostport.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		err = net.ErrClosed
	} else {
		err = a.translate(slices.Concat(a.ports, opened))
	}
	if err != nil {
		hostport.CloseAll(opened)
		return nil, fmt.Errorf("publish %s: %w", p, err)
	}
	a.ports = append(a.ports, opened...)
	for _, o := range opened {
		a.servePort(o)
	}
	return hostport.Ports(opened), nil
}

// translate has the kernel pass on what comes to these ports, and no others.
func (a *attachment) translate(ports []*hostport.Opened) error {
	return withLock(func() error { return publish(a.cfg.ID, hostport.Ports(ports), a.targets()) })
}

// targets are the VM's addresses that the kernel passes on to. Where the host does
// not forward IPv6, the supervisor serves that family's clients, as those on the
// loopback.
func (a *attachment) targets() []netip.Addr {
	if forwards6() {
		return a.Addresses()
	}
	return []netip.Addr{a.ip}
}

// Unpublish implements network.Publisher.
func (a *attachment) Unpublish(p network.Port) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.ports, func(o *hostport.Opened) bool { return o.Port() == p })
	if i < 0 || a.closed {
		return fmt.Errorf("close %s: %w", p, network.ErrNotPublished)
	}
	o := a.ports[i]
	left := slices.Delete(slices.Clone(a.ports), i, i+1)
	if err := a.translate(left); err != nil {
		return fmt.Errorf("close %s: %w", p, err)
	}
	a.ports = left
	return o.Close()
}

func (a *attachment) portList() []network.Port {
	a.mu.Lock()
	defer a.mu.Unlock()
	return hostport.Ports(a.ports)
}

// Rename implements network.Renamer.
func (a *attachment) Rename(name string) error {
	return withLock(func() error {
		l, err := netlink.LinkByName(linkPrefix + a.cfg.ID)
		if err == nil {
			m := member{id: a.cfg.ID, ip: a.ip, name: name}
			err = netlink.LinkSetAlias(l, m.alias())
		}
		if err != nil {
			return fmt.Errorf("let other VMs know %s by its new name: %w", name, err)
		}
		return nil
	})
}

// Net implements network.Attachment.
func (a *attachment) Net() *vmm.Net { return &a.vmm }

// Launcher implements network.Attachment.
func (a *attachment) Launcher() vmm.Launcher { return a.ns }

// Ports implements network.Attachment.
func (a *attachment) Ports() []network.Port { return a.portList() }

// MTU implements network.Attachment.
func (a *attachment) MTU() int { return a.host.mtu }

// Addresses implements network.Addressed.
func (a *attachment) Addresses() []netip.Addr {
	if a.ip6.IsValid() {
		return []netip.Addr{a.ip, a.ip6}
	}
	return []netip.Addr{a.ip}
}

// Close implements network.Attachment. What was made on the host is gone when
// it returns, with the bridge if this VM was the last.
func (a *attachment) Close() error {
	a.closing.Do(func() { a.closeErr = a.close() })
	return a.closeErr
}

func (a *attachment) close() error {
	a.mu.Lock()
	a.closed = true
	hostport.CloseAll(a.ports)
	a.mu.Unlock()
	if a.cancel != nil {
		a.cancel()
	} else { // nobody serves them who would close them
		for _, c := range []interface{ Close() error }{a.dnsUDP, a.dnsTCP} {
			if c != nil {
				_ = c.Close()
			}
		}
	}
	a.tasks.Wait()
	if a.presence == nil {
		return nil
	}
	// From here on it is as if this process had died.
	err := a.presence.Close()
	err = errors.Join(err, withLock(reconcile))
	a.forgetConnections()
	if a.ns != nil {
		err = errors.Join(err, a.ns.Close())
	}
	if err != nil {
		return fmt.Errorf("close the network: %w", err)
	}
	return nil
}

// forgetConnections has the kernel forget where packets of known clients went:
// those that send UDP from the same port again would go on to nowhere. A
// kernel that cannot (nf_conntrack_netlink) forgets them in two minutes.
func (a *attachment) forgetConnections() {
	for _, addr := range a.Addresses() {
		if !addr.IsValid() {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if f.AddIP(netlink.ConntrackReplySrcIP, addr.AsSlice()) != nil {
			continue
		}
		fam := netlink.InetFamily(unix.AF_INET)
		if addr.Is6() {
			fam = unix.AF_INET6
		}
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, fam, f)
	}
}

// expirePause is how often expired addresses are looked for.
const expirePause = time.Minute
