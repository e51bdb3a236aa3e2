// Package bridge is the network backend at full speed, for root: VMs are on a
// bridge of the host, the kernel passes their packets on.
//
//	world ── host ── fcvmbr0 ══ veth ══ eth0 (10.201.0.9) ── tap0 (10.0.2.2) ── guest (10.0.2.15)
//	         nftables: table fcvm       nftables: table fcvm
//	                                    └──────── the VM's own namespace ────────┘
//
// Every guest has the same address; its namespace translates it into the VM's
// own, one to one. Policies (egress, isolation, what a guest may send at all)
// are in the namespace as well, out of the guest's reach. The host has one
// bridge and one table, named fcvm, and nothing of anybody else's is touched.
// Published ports are translated there, and opened as sockets by the
// supervisor besides: that keeps others from taking them, and serves clients
// on the host's loopback, which the kernel would not route.
//
// There is no list of VMs but the kernel's: the veth's alias says whose it is.
// It goes with the namespace, and that with the last process in it. What is
// left of a supervisor that was killed is its chain in the table, and the
// bridge if nobody else uses it; the next command removes both (Reconcile).
package bridge

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"

	"github.com/gofrs/flock"
	"github.com/google/nftables"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vm"
)

// What the backend makes on the host.
const (
	LinkName      = "fcvmbr0"
	TableName     = "fcvm"
	DefaultSubnet = "10.201.0.0/16"
)

// lockPath is locked to change what VMs share.
const lockPath = "/run/fcvm-bridge.lock"

// Backend puts VMs on the bridge.
type Backend struct {
	subnet netip.Prefix // not valid: the default, or what the bridge has
}

var _ network.Backend = (*Backend)(nil)

// New returns the backend. subnet is the bridge's network, as ParseSubnet
// returns it.
func New(subnet netip.Prefix) *Backend { return &Backend{subnet} }

// Name implements network.Backend.
func (*Backend) Name() string { return "bridge" }

// Available implements network.Backend. It changes nothing.
func (b *Backend) Available() error {
	// Capabilities alone do not do: they open neither lockPath nor sysctls.
	if os.Geteuid() != 0 || !netns.Privileged() {
		return fmt.Errorf("%w: bridge: it needs root: run as root, or use --network usernet, which needs nothing", network.ErrUnavailable)
	}
	if err := netns.Check(); err != nil {
		return fmt.Errorf("%w: bridge: %w", network.ErrUnavailable, err)
	}
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTables()
	}
	if err != nil {
		return fmt.Errorf("%w: bridge: the kernel's nftables cannot be used (%w): modprobe nf_tables nft_chain_nat nft_masq, or use --network usernet", network.ErrUnavailable, err)
	}
	if _, err := findHost(b.subnet); err != nil {
		return fmt.Errorf("%w: bridge: %w", network.ErrUnavailable, err)
	}
	return nil
}

// Blocked says who else's rules keep VMs from the world, and what to do; empty:
// nobody's, as far as can be seen. Such a host is better served by usernet.
func (*Backend) Blocked() string {
	conn, err := nftables.New()
	if err != nil {
		return ""
	}
	return cmp.Or(foreignDrop(conn), legacyDrop())
}

// withLock calls f while nobody else changes what VMs share.
func withLock(f func() error) error {
	l := flock.New(lockPath, flock.SetPermissions(0o600))
	if err := l.Lock(); err != nil {
		return fmt.Errorf("lock %s: %w", lockPath, err)
	}
	defer func() { _ = l.Close() }()
	return f()
}

// Start implements network.Backend.
func (b *Backend) Start(ctx context.Context, cfg network.Config) (_ network.Attachment, err error) {
	if !cfg.Capabilities.TapNetwork {
		return nil, fmt.Errorf("%w: bridge: the VMM takes no tap", network.ErrUnavailable)
	}
	if cfg.IP.IsValid() && !cfg.IP.Is4() {
		return nil, fmt.Errorf("%w: --ip %s: it is an IPv4 address; the IPv6 one follows from it", vm.ErrInvalid, cfg.IP)
	}
	a := &attachment{
		cfg:    cfg,
		limits: hostport.Limits{TCP: make(chan struct{}, maxTCP), UDP: hostport.NewFlows(maxUDP)},
	}
	defer func() {
		if err != nil {
			_ = a.Close()
		}
	}()
	if a.ports, err = hostport.OpenAll(ctx, cfg.Ports); err != nil {
		return nil, err
	}
	if err := a.claim(); err != nil {
		return nil, err
	}
	if err := withLock(func() error { return a.attach(b.subnet) }); err != nil {
		return nil, err
	}
	if err := a.setUpNamespace(); err != nil {
		return nil, err
	}
	if err := a.serve(); err != nil {
		return nil, err
	}
	return a, nil
}

// Reconcile removes what supervisors that died have left on this host, and
// bridge and table with the last VM. It does nothing for whom is not root, and
// costs next to nothing where there is no bridge.
func Reconcile() error {
	if os.Geteuid() != 0 || !present() {
		return nil
	}
	return withLock(reconcile)
}

// reconcile is called with the lock held.
func reconcile() error {
	list, err := members()
	if err != nil {
		return err
	}
	alive := make(map[string]bool)
	for _, m := range list {
		if m.alive() {
			alive[m.id] = true
		} else if err := removeLink(m.link); err != nil {
			return err
		}
	}
	if len(alive) == 0 {
		return tearDown()
	}
	return dropDeadChains(alive)
}
