// Package slirp is the network backend by the program slirp4netns, which many
// hosts have for rootless containers. It opens the other end of the VMM's tap
// in the VM's namespace; ports are opened and closed over its API socket.
//
// The guest's gateway is the host's loopback. What the program does not do is
// refused: egress policies, ports on IPv6 addresses. A port without a host address
// is open on those of IPv4 alone. It does not carry IPv6 here, and does not keep
// guests from the host's link-local addresses.
//
// https://github.com/rootless-containers/slirp4netns/blob/master/slirp4netns.1.md
package slirp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
)

const (
	program = "slirp4netns"
	mtu     = 65520
	// socketName is the API socket's in the VM's directory.
	socketName = "slirp.sock"
)

// Backend runs slirp4netns for each VM.
type Backend struct{}

var _ network.Backend = (*Backend)(nil)

// New returns the backend.
func New() *Backend { return &Backend{} }

// Name implements network.Backend.
func (*Backend) Name() string { return "slirp4netns" }

// Available implements network.Backend.
func (*Backend) Available() error {
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%w: %s is not installed: install the package %s, or use --network usernet, which needs nothing", network.ErrUnavailable, program, program)
	}
	if err := netns.Check(); err != nil {
		return fmt.Errorf("%w: slirp4netns: %w", network.ErrUnavailable, err)
	}
	return nil
}

// Start implements network.Backend. The program itself starts with the VMM,
// whose namespace it needs; until then ports are held open here.
func (b *Backend) Start(ctx context.Context, cfg network.Config) (network.Attachment, error) {
	switch {
	case !cfg.Capabilities.TapNetwork:
		return nil, fmt.Errorf("%w: slirp4netns: the VMM takes no tap", network.ErrUnavailable)
	case cfg.Egress.Restricted:
		return nil, cfg.Refuse(b.Name(), "--egress", "usernet or bridge")
	case cfg.IP.IsValid():
		return nil, cfg.Refuse(b.Name(), "--ip "+cfg.IP.String(), "bridge")
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, b.Available()
	}
	a := &attachment{program: path, hardened: hardened(ctx, path), servers: cfg.Servers, phase: cfg.Phase, lost: make(chan error, 1)}
	held, err := hold(ctx, cfg.Ports)
	if err != nil {
		return nil, err
	}
	for _, o := range held {
		a.ports = append(a.ports, forwarded{port: o.Port(), held: o})
	}
	a.vmm = vmm.Net{MAC: vmm.GuestMAC, MTU: mtu, Tap: network.TapName}
	return a, nil
}

// attachment is one VM's network.
type attachment struct {
	program  string
	hardened []string // options of it
	servers  []netip.Addr
	vmm      vmm.Net
	phase    vmm.Phase
	lost     chan error

	mu     sync.Mutex
	ports  []forwarded
	slirp  *process // nil: not yet, or no more
	closed bool
}

// forwarded is a published port: held open, until slirp4netns has it.
type forwarded struct {
	port network.Port
	held *hostport.Opened
	id   int // of slirp4netns
}

var (
	_ network.Attachment  = (*attachment)(nil)
	_ network.Publisher   = (*attachment)(nil)
	_ network.NameServers = (*attachment)(nil)
	_ network.Dependent   = (*attachment)(nil)
	_ vmm.Launcher        = (*attachment)(nil)
)

// hold opens ports, all or none, until slirp4netns is to have them. It says best what
// is in the way.
func hold(ctx context.Context, ports []network.Port) ([]*hostport.Opened, error) {
	var v4 []network.Port
	for _, p := range ports {
		if p.HostIP.Is6() {
			return nil, (&network.Config{}).Refuse("slirp4netns", fmt.Sprintf("publish %s: IPv6 addresses of the host", p), "usernet or bridge")
		}
		v4 = append(v4, p.Families()[0])
	}
	return hostport.OpenAll(ctx, v4)
}

// Launch implements vmm.Launcher: the VMM starts in a namespace with a tap, and
// slirp4netns beside it.
func (a *attachment) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, _, err := netns.Launch(ctx, c, netns.Tap{Name: network.TapName, MTU: mtu, Left: true}, a.phase.Begin("namespace"))
	if err != nil {
		return nil, err
	}
	if err := a.connect(ctx, p.PID(), c); err != nil {
		_ = p.Signal(os.Kill)
		p.Wait()
		return nil, fmt.Errorf("connect the VMM to its network: %w", err)
	}
	return p, nil
}

func (a *attachment) connect(ctx context.Context, pid int, c vmm.Command) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return net.ErrClosed
	}
	if before := a.slirp; before != nil { // of a VMM that has ended
		a.slirp = nil
		if err := before.close(); err != nil {
			return err
		}
	}
	s, err := a.start(ctx, pid, c)
	if err != nil {
		return err
	}
	a.slirp = s
	go a.watch(s)
	for i := range a.ports {
		f := &a.ports[i]
		if f.held != nil {
			if err := f.held.Close(); err != nil {
				return err
			}
			f.held = nil
		}
		if f.id, err = s.forward(ctx, f.port); err != nil {
			return err
		}
	}
	return nil
}

// watch tells of a slirp4netns that ends though nobody has asked it to.
func (a *attachment) watch(s *process) {
	exit := s.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.slirp == s {
		a.lost <- fmt.Errorf("slirp4netns %s", exit.Reason)
	}
}

// Lost implements network.Dependent.
func (a *attachment) Lost() <-chan error { return a.lost }

// Publish implements network.Publisher.
func (a *attachment) Publish(ctx context.Context, p network.Port) ([]network.Port, error) {
	held, err := hold(ctx, []network.Port{p})
	if err != nil {
		return nil, err
	}
	f := forwarded{port: held[0].Port()}
	a.mu.Lock()
	defer a.mu.Unlock()
	err = held[0].Close()
	switch {
	case a.closed || a.slirp == nil:
		err = errors.Join(err, net.ErrClosed)
	case err == nil:
		f.id, err = a.slirp.forward(ctx, f.port)
	}
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", p, err)
	}
	a.ports = append(a.ports, f)
	return []network.Port{f.port}, nil
}

// Unpublish implements network.Publisher.
func (a *attachment) Unpublish(p network.Port) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.ports, func(f forwarded) bool { return f.port == p })
	if i < 0 || a.slirp == nil {
		return fmt.Errorf("close %s: %w", p, network.ErrNotPublished)
	}
	if err := a.slirp.remove(a.ports[i].id); err != nil {
		return fmt.Errorf("close %s: %w", p, err)
	}
	a.ports = slices.Delete(a.ports, i, i+1)
	return nil
}

// Net implements network.Attachment.
func (a *attachment) Net() *vmm.Net { return &a.vmm }

// Launcher implements network.Attachment.
func (a *attachment) Launcher() vmm.Launcher { return a }

// Ports implements network.Attachment.
func (a *attachment) Ports() []network.Port {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]network.Port, 0, len(a.ports))
	for _, f := range a.ports {
		list = append(list, f.port)
	}
	return list
}

// MTU implements network.Attachment.
func (*attachment) MTU() int { return mtu }

// NameServers implements network.NameServers: slirp4netns asks the host's name
// servers and no others.
func (a *attachment) NameServers() []netip.Addr {
	if len(a.servers) > 0 {
		return a.servers
	}
	return []netip.Addr{netip.MustParseAddr(network.DNS)}
}

// Close implements network.Attachment.
func (a *attachment) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, f := range a.ports {
		if f.held != nil {
			_ = f.held.Close()
		}
	}
	a.ports = nil
	if a.slirp == nil {
		return nil
	}
	err := a.slirp.close()
	a.slirp = nil
	return err
}

// socketPath is short whatever the directory's is: a socket's path has 107
// bytes (unix(7)).
func socketPath(dir *os.File) string {
	return filepath.Join("/proc/self/fd", fmt.Sprint(dir.Fd()), socketName)
}
