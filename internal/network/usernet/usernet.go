// Package usernet is the network backend that needs no privilege and nothing
// installed: gVisor's network stack inside this process stands for the world
// that the guest sees, and passes what the guest sends on through ordinary
// sockets of the host.
//
// The stack is the one of gvisor-tap-vsock. That module's own composition of
// it is not used: it cannot be closed, has no limits on what a guest can make
// it open, and takes a guest's frames unchecked.
//
// The guest sees a gateway, 10.0.2.2, that is also the host's loopback (and
// host.containers.internal and host.docker.internal), a DNS server, 10.0.2.3,
// and IPv4 beyond. Of ICMP it can send echo requests, where the host lets its
// user do so (net.ipv4.ping_group_range); there is no IPv6.
package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
)

// mtu is the guest's: the largest of an IPv4 packet, rounded down so that
// what a VMM puts around it fits into 64 KiB. Packets end in this process, so
// that no other link ever sees one of that size.
const mtu = 65520

// Backend makes user-mode networks.
type Backend struct {
	probe func(context.Context, netns.Tap) error // says why this host has no tap for a VMM
}

var _ network.Backend = (*Backend)(nil)

// New returns the backend.
func New() *Backend { return &Backend{probe: netns.Probe} }

// Name implements network.Backend.
func (*Backend) Name() string { return "usernet" }

// Available implements network.Backend.
func (*Backend) Available() error { return nil }

// Start implements network.Backend. A VMM gets a tap in a namespace of its own: by
// its headers guest and stack leave each other checksums and large segments. Where
// there can be none, one that takes a socket is given that, which needs nothing of
// the host.
func (b *Backend) Start(ctx context.Context, cfg network.Config) (network.Attachment, error) {
	if cfg.IP.IsValid() {
		return nil, cfg.Refuse(b.Name(), "--ip "+cfg.IP.String(), "bridge")
	}
	a := &attachment{cfg: cfg}
	connect, err := b.choose(ctx, a)
	if err != nil {
		return nil, err
	}
	ports, err := hostport.OpenAll(ctx, cfg.Ports)
	if err != nil {
		return nil, err
	}
	a.ports = ports
	if err := connect(); err != nil {
		hostport.CloseAll(ports)
		return nil, err
	}
	for _, o := range ports {
		a.serve(o)
	}
	return a, nil
}

// choose decides how the VMM is connected.
func (b *Backend) choose(ctx context.Context, a *attachment) (connect func() error, err error) {
	can := a.cfg.Capabilities
	if can.TapNetwork {
		err := b.probe(ctx, tap)
		switch {
		case err == nil:
			return a.connectTap, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !can.SockNetwork:
			return nil, fmt.Errorf("%w: usernet: %w", network.ErrUnavailable, err)
		case a.cfg.Say != nil:
			a.cfg.Say(fmt.Sprintf("usernet: the VMM is connected by a socket, which is slower than a tap: %v", err))
		}
	}
	if can.SockNetwork {
		return a.connectSocket, nil
	}
	return nil, fmt.Errorf("%w: usernet: the VMM takes neither a network socket nor a tap", network.ErrUnavailable)
}

// attachment is one VM's network.
type attachment struct {
	cfg network.Config
	net *netstack
	vmm vmm.Net

	launcher vmm.Launcher

	mu    sync.Mutex
	ports []*hostport.Opened

	closing  sync.Once
	closeErr error
}

var (
	_ network.Attachment = (*attachment)(nil)
	_ network.Publisher  = (*attachment)(nil)
)

// serve begins to serve a published port; false: the network is being closed.
func (a *attachment) serve(o *hostport.Opened) bool {
	if !a.net.enter() {
		return false
	}
	go func() {
		defer a.net.tasks.Done()
		o.Serve(a.net.ctx, a.net, a.net.limits)
	}()
	return true
}

// Publish implements network.Publisher.
func (a *attachment) Publish(ctx context.Context, p network.Port) ([]network.Port, error) {
	opened, err := hostport.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range opened {
		if !a.serve(o) {
			hostport.CloseAll(opened)
			return nil, fmt.Errorf("publish %s: %w", p, net.ErrClosed)
		}
	}
	a.ports = append(a.ports, opened...)
	return hostport.Ports(opened), nil
}

// Unpublish implements network.Publisher.
func (a *attachment) Unpublish(p network.Port) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, o := range a.ports {
		if o.Port() == p {
			a.ports = slices.Delete(a.ports, i, i+1)
			return o.Close()
		}
	}
	return fmt.Errorf("close %s: %w", p, network.ErrNotPublished)
}

// Net implements network.Attachment.
func (a *attachment) Net() *vmm.Net { return &a.vmm }

// Launcher implements network.Attachment.
func (a *attachment) Launcher() vmm.Launcher { return a.launcher }

// Ports implements network.Attachment.
func (a *attachment) Ports() []network.Port {
	a.mu.Lock()
	defer a.mu.Unlock()
	return hostport.Ports(a.ports)
}

// MTU implements network.Attachment.
func (a *attachment) MTU() int { return mtu }

// Close implements network.Attachment. Published ports are free when it
// returns; connections have been reset. Further calls return what the first
// did.
func (a *attachment) Close() error {
	a.closing.Do(func() { a.closeErr = a.close() })
	return a.closeErr
}

func (a *attachment) close() error {
	a.net.refuse() // no port is opened from here on
	a.mu.Lock()
	hostport.CloseAll(a.ports)
	a.mu.Unlock()
	err := a.net.close()
	if a.vmm.Socket != nil {
		// The VMM has its own; a driver that has closed ours did no harm.
		if e := a.vmm.Socket.Close(); e != nil && !errors.Is(e, os.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("close the network: %w", err)
	}
	return nil
}
