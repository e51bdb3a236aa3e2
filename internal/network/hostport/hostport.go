// Package hostport is the host's end of published ports: sockets that are
// opened before a VM boots, so that a port that is taken is found in time, and
// relays between their clients and a guest.
//
// Ports are opened by Open, and served from Serve on; clients that come in
// between wait in the socket.
package hostport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

// Opened is a published port whose socket is open.
type Opened struct {
	port network.Port // with the port that was chosen
	tcp  *net.TCPListener
	udp  *net.UDPConn
}

// Port is the port as opened, with the host port that was chosen.
func (o *Opened) Port() network.Port { return o.port }

// Close gives the port back. Connections that were made through it go on.
func (o *Opened) Close() error {
	var c io.Closer = o.udp
	if o.tcp != nil {
		c = o.tcp
	}
	return c.Close()
}

// OpenAll opens all ports or none.
func OpenAll(ctx context.Context, ports []network.Port) ([]*Opened, error) {
	var list []*Opened
	for _, p := range ports {
		opened, err := Open(ctx, p)
		if err != nil {
			CloseAll(list)
			return nil, err
		}
		list = append(list, opened...)
	}
	return list, nil
}

// Ports are ports as opened.
func Ports(list []*Opened) []network.Port {
	ports := make([]network.Port, 0, len(list))
	for _, o := range list {
		ports = append(ports, o.Port())
	}
	return ports
}

// CloseAll gives ports back.
func CloseAll(list []*Opened) {
	for _, o := range list {
		_ = o.Close()
	}
}

// maxMissed bounds how many free ports of IPv4 are tried for one that is free in
// IPv6 as well.
const maxMissed = 100

// Open opens one port, of a range the first that is free. Without a host address
// that is one of each family that the host has, IPv4 first, with the same number.
// Errors name the port, who has it as far as that can be known, and what to do; they
// wrap network.ErrPortTaken, syscall.EACCES or syscall.EADDRNOTAVAIL.
func Open(ctx context.Context, p network.Port) ([]*Opened, error) {
	if p.HostPortEnd == 0 {
		return openFamilies(ctx, p)
	}
	one := p
	for one.HostPortEnd = 0; ; one.HostPort++ {
		list, err := openFamilies(ctx, one)
		if !errors.Is(err, network.ErrPortTaken) {
			return list, err
		}
		if one.HostPort >= p.HostPortEnd {
			return nil, fmt.Errorf("publish %s: %w: all ports of the range are taken; give a larger one", p, network.ErrPortTaken)
		}
	}
}

func openFamilies(ctx context.Context, p network.Port) ([]*Opened, error) {
	families := p.Families()
	if len(families) > 1 && !hasIPv6() {
		families = families[:1]
	}
	// They are kept until one does: the kernel would choose them again.
	var missed []*Opened
	defer func() { CloseAll(missed) }()
	for {
		first, err := open(ctx, families[0])
		if err != nil {
			return nil, err
		}
		if len(families) == 1 {
			return []*Opened{first}, nil
		}
		other := families[1]
		other.HostPort = first.port.HostPort
		second, err := open(ctx, other)
		switch {
		case err == nil:
			return []*Opened{first, second}, nil
		case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
			return []*Opened{first}, nil
		}
		missed = append(missed, first)
		if p.HostPort != 0 || !errors.Is(err, network.ErrPortTaken) || len(missed) == maxMissed {
			return nil, err
		}
	}
}

// hasIPv6 reports whether an interface of the host has an address of IPv6, as the
// loopback does unless it is disabled. A socket could be had even then.
func hasIPv6() bool {
	addrs, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, ok := a.(*net.IPNet)
		return ok && p.IP.To4() == nil
	})
}

func open(ctx context.Context, p network.Port) (*Opened, error) {
	o := &Opened{port: p}
	var lc net.ListenConfig
	// "tcp4" rather than "tcp": an address is what it is and not also the
	// other family's, which decides what the unspecified ones mean.
	family := "4"
	if p.HostIP.Is6() {
		family = "6"
	}
	var local net.Addr
	switch p.Protocol {
	case network.TCP:
		l, err := lc.Listen(ctx, "tcp"+family, p.HostAddr().String())
		if err != nil {
			return nil, openError(p, err)
		}
		o.tcp, local = l.(*net.TCPListener), l.Addr()
	case network.UDP:
		c, err := lc.ListenPacket(ctx, "udp"+family, p.HostAddr().String())
		if err != nil {
			return nil, openError(p, err)
		}
		o.udp, local = c.(*net.UDPConn), c.LocalAddr()
		if err := tellLocal(o.udp, p.HostIP.Is6()); err != nil {
			_ = o.Close()
			return nil, fmt.Errorf("publish %s: %w", p, err)
		}
	default:
		return nil, fmt.Errorf("%w: publish %s: protocol %q", vm.ErrInvalid, p, p.Protocol)
	}
	chosen, err := netip.ParseAddrPort(local.String())
	if err != nil {
		_ = o.Close()
		return nil, fmt.Errorf("publish %s: %w", p, err)
	}
	o.port.HostPort = chosen.Port()
	return o, nil
}

func openError(p network.Port, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		who := ""
		if o := portOwner("/proc", p); o != "" {
			who = " by " + o
		}
		return fmt.Errorf("publish %s: %w%s: take another host port, or leave it out for a free one", p, network.ErrPortTaken, who)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("publish %s: not allowed: host ports below net.ipv4.ip_unprivileged_port_start (1024) are root's; take a higher host port, or run as root: %w", p, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("publish %s: this host does not have the address %s; leave it out for all of its addresses: %w", p, p.HostIP, err)
	default:
		return fmt.Errorf("publish %s: %w", p, err)
	}
}
