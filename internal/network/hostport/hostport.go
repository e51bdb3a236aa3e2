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
		o, err := Open(ctx, p)
		if err != nil {
			CloseAll(list)
			return nil, err
		}
		list = append(list, o)
	}
	return list, nil
}

// CloseAll gives ports back.
func CloseAll(list []*Opened) {
	for _, o := range list {
		_ = o.Close()
	}
}

// Open opens one port, of a range the first that is free. Errors name the port,
// who has it as far as that can be known, and what to do; they wrap
// network.ErrPortTaken, syscall.EACCES or syscall.EADDRNOTAVAIL.
func Open(ctx context.Context, p network.Port) (*Opened, error) {
	if p.HostPortEnd == 0 {
		return open(ctx, p)
	}
	one := p
	for one.HostPortEnd = 0; ; one.HostPort++ {
		o, err := open(ctx, one)
		if !errors.Is(err, network.ErrPortTaken) {
			return o, err
		}
		if one.HostPort >= p.HostPortEnd {
			return nil, fmt.Errorf("publish %s: %w: all ports of the range are taken; give a larger one", p, network.ErrPortTaken)
		}
	}
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
