package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

// rootless are the backends that need no root, in the order in which a choice
// is made; privileged those that do.
var (
	rootless   = []string{"usernet"}
	privileged = []string{"bridge"}
)

var errNetworkLost = errors.New("the VM has lost its network")

// blocker is implemented by backends whose VMs others' rules may keep from the
// world.
type blocker interface{ Blocked() string }

// ChooseNetwork returns the name of the backend that a spec asks for, and why
// not others. It changes nothing.
func ChooseNetwork(backends []network.Backend, spec vm.NetworkSpec) (name, why string, err error) {
	b, why, err := chooseNetwork(backends, spec)
	if err != nil {
		return "", "", err
	}
	return b.Name(), why, nil
}

// chooseNetwork returns the backend that a spec asks for, and why. "auto" is
// the bridge for root, where nothing is in its way, else usernet.
func chooseNetwork(backends []network.Backend, spec vm.NetworkSpec) (network.Backend, string, error) {
	names := []string{spec.Backend}
	if spec.Backend == auto {
		switch spec.Mode {
		case vm.ModeRootless:
			names = rootless
		case vm.ModePrivileged:
			names = privileged
		default:
			names = slices.Concat(privileged, rootless)
		}
	}
	if spec.Backend == auto && spec.IP != "" {
		names = privileged // nothing else gives addresses
	}
	var refused, known []string
	for _, b := range backends {
		known = append(known, b.Name())
	}
	for _, name := range names {
		i := slices.Index(known, name)
		if i < 0 {
			return nil, "", fmt.Errorf("%w: --network %q: it is auto, %s", vm.ErrInvalid, name, strings.Join(known, " or "))
		}
		b := backends[i]
		err := b.Available()
		if err != nil {
			refused = append(refused, strings.TrimPrefix(err.Error(), network.ErrUnavailable.Error()+": "))
			continue
		}
		if blocks, ok := b.(blocker); ok {
			if why := blocks.Blocked(); why != "" && name == spec.Backend {
				refused = append(refused, why)
			} else if why != "" {
				refused = append(refused, fmt.Sprintf("%s: %s", name, why))
				if len(names) > 1 {
					continue
				}
			}
		}
		return b, strings.Join(refused, "; "), nil
	}
	return nil, "", fmt.Errorf("%w: %s%s", network.ErrUnavailable, strings.Join(refused, "; "), alternatives(backends, names))
}

// alternatives names the backends that this host can do, for an error.
func alternatives(backends []network.Backend, tried []string) string {
	var can []string
	for _, b := range backends {
		if !slices.Contains(tried, b.Name()) && b.Name() != "none" && b.Available() == nil {
			can = append(can, b.Name())
		}
	}
	if len(can) == 0 {
		return ""
	}
	return "; this host can do --network " + strings.Join(can, " or ")
}

// networkConfig is the spec in a backend's terms.
func (in *instance) networkConfig() (cfg network.Config, err error) {
	s := &in.Spec.Network
	rec := in.vm.Record()
	cfg = network.Config{
		ID: rec.ID, Name: rec.Name, Capabilities: in.driver.Capabilities(), Isolated: s.Isolated, Phase: in.timer.phase,
		Say: func(line string) {
			in.Verbose(line)
			in.notes = append(in.notes, line)
		},
	}
	if in.from != nil && in.from.Manifest.DeviceTap {
		cfg.Capabilities.SockNetwork = false
	}
	if cfg.Ports, err = network.ParsePublish(in.openPorts()); err != nil {
		return cfg, err
	}
	if cfg.Egress, err = network.ParseEgress(s.Egress); err != nil {
		return cfg, err
	}
	for _, a := range s.DNS {
		ip, err := netip.ParseAddr(a)
		if err != nil {
			return cfg, fmt.Errorf("%w: --dns %q: %w", vm.ErrInvalid, a, err)
		}
		cfg.Servers = append(cfg.Servers, ip)
	}
	if s.IP != "" {
		if cfg.IP, err = netip.ParseAddr(s.IP); err != nil {
			return cfg, fmt.Errorf("%w: --ip %q: %w", vm.ErrInvalid, s.IP, err)
		}
	}
	return cfg, nil
}

// recordNetwork writes down what became of the network. A restart takes the
// same ports of the host again.
func (in *instance) recordNetwork(backend string) error {
	return in.vm.Update(func(r *vm.Record) error {
		r.Resolved.Network, r.Resolved.NetworkNotes, r.Resolved.Link = backend, in.notes, linkOf(in.net)
		in.fillPorts(r)
		r.Resolved.Addresses = nil
		if a, ok := in.net.(network.Addressed); ok {
			for _, addr := range a.Addresses() {
				r.Resolved.Addresses = append(r.Resolved.Addresses, addr.String())
			}
		}
		return nil
	})
}

// fillPorts writes the ports down as they are now.
func (in *instance) fillPorts(r *vm.Record) {
	in.mu.Lock()
	defer in.mu.Unlock()
	ports := in.net.Ports()
	r.Resolved.Ports, in.life.ports = nil, network.Specs(ports)
	for _, p := range ports {
		r.Resolved.Ports = append(r.Resolved.Ports, p.String())
	}
}

func (in *instance) openPorts() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.life.ports
}

// watchNetwork ends a VM that has lost its network: nobody could reach it, and
// it would not say so.
func (in *instance) watchNetwork(ctx context.Context) {
	d, ok := in.net.(network.Dependent)
	if !ok {
		return
	}
	select {
	case err := <-d.Lost():
		if _, ended := in.machineExit(); ended {
			return // and the network with it
		}
		in.fail(fmt.Errorf("%w: %w", errNetworkLost, err))
	case <-ctx.Done():
	}
}

// guestNetwork is the guest's side of the network; nil: it has none.
func (in *instance) guestNetwork() *agentapi.Network {
	if in.net.Net() == nil {
		return nil
	}
	n := &agentapi.Network{
		Interface: network.GuestInterface, Address: network.GuestAddress,
		Gateway: network.Gateway, DNS: []string{network.DNS}, MTU: in.net.MTU(), Search: in.Spec.Network.Search,
	}
	if s, ok := in.net.(network.NameServers); ok {
		n.DNS = nil
		for _, a := range s.NameServers() {
			n.DNS = append(n.DNS, a.String())
		}
	}
	if a, ok := in.net.(network.Addressed); ok && slices.ContainsFunc(a.Addresses(), netip.Addr.Is6) {
		n.Address6, n.Gateway6 = network.GuestAddress6, network.Gateway6
	}
	return n
}
