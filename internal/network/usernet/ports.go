package usernet

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

// opened is a published port whose socket is open. Clients wait in it until
// the network serves it.
type opened struct {
	port network.Port // with the port that was chosen
	tcp  *net.TCPListener
	udp  *net.UDPConn
}

// Close gives the port back.
func (o *opened) Close() error {
	var c io.Closer = o.udp
	if o.tcp != nil {
		c = o.tcp
	}
	return c.Close()
}

// openPorts opens all ports or none.
func openPorts(ctx context.Context, ports []network.Port) ([]*opened, error) {
	var list []*opened
	for _, p := range ports {
		o, err := openPort(ctx, p)
		if err != nil {
			closePorts(list)
			return nil, err
		}
		list = append(list, o)
	}
	return list, nil
}

func closePorts(list []*opened) {
	for _, o := range list {
		_ = o.Close()
	}
}

func openPort(ctx context.Context, p network.Port) (*opened, error) {
	o := &opened{port: p}
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
		return fmt.Errorf("publish %s: not allowed: host ports below net.ipv4.ip_unprivileged_port_start (1024) are root's: %w", p, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("publish %s: this host does not have the address %s: %w", p, p.HostIP, err)
	default:
		return fmt.Errorf("publish %s: %w", p, err)
	}
}
