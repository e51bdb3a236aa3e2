package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// HostNames are the names by which a container reaches its host, as Podman
// and Docker have them.
var HostNames = [...]string{"host.containers.internal", "host.docker.internal"}

// Egress is what a guest may connect to. It is enforced outside the guest.
// The zero value allows everything.
type Egress struct {
	Restricted bool // nothing but what follows
	Prefixes   []netip.Prefix
	Domains    []string // lower case, no dot at the end; "*.example.org" is every name below example.org
}

// maxEgress bounds how many entries an egress policy has.
const maxEgress = 256

// ParseEgress reads the values of --egress: "all", "none", or any number of
// addresses, networks (CIDR), names, and "*.name" for all names below one.
// Errors wrap vm.ErrInvalid.
func ParseEgress(values []string) (Egress, error) {
	var e Egress
	var alone string
	for _, v := range values {
		v = strings.TrimSpace(v)
		switch strings.ToLower(v) {
		case "all":
			alone = v
			continue
		case "none":
			alone, e.Restricted = v, true
			continue
		}
		e.Restricted = true
		if p, ok := parsePrefix(v); ok {
			e.Prefixes = append(e.Prefixes, p)
			continue
		}
		name := strings.ToLower(strings.TrimSuffix(v, "."))
		if err := checkDomain(strings.TrimPrefix(name, "*.")); err != nil {
			return Egress{}, fmt.Errorf("%w: --egress %q: it is all, none, an address, a network as 192.0.2.0/24, a name, or *.name: %w", vm.ErrInvalid, v, err)
		}
		e.Domains = append(e.Domains, name)
	}
	n := len(e.Prefixes) + len(e.Domains)
	switch {
	case alone != "" && (n > 0 || len(values) > 1):
		return Egress{}, fmt.Errorf("%w: --egress %s: it rules out everything else", vm.ErrInvalid, alone)
	case n > maxEgress:
		return Egress{}, fmt.Errorf("%w: --egress: %d entries, the limit is %d", vm.ErrInvalid, n, maxEgress)
	}
	return e, nil
}

func parsePrefix(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}

// checkDomain refuses what is no name of a host (RFC 1123, 2.1; underscores
// are in use).
func checkDomain(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("a name has 1 to 253 characters")
	}
	numeric := true
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is no part of a name", label)
		}
		for _, c := range label {
			switch {
			case c >= '0' && c <= '9':
			case c >= 'a' && c <= 'z', c == '-', c == '_':
				numeric = false
			default:
				return fmt.Errorf("%q is no character of a name", c)
			}
		}
	}
	if numeric {
		return fmt.Errorf("a name is not all numbers")
	}
	return nil
}

// AllowsName reports whether a name may be looked up, and what it stands for
// be reached. name has no dot at its end.
func (e *Egress) AllowsName(name string) bool {
	if !e.Restricted {
		return true
	}
	name = strings.ToLower(name)
	for _, d := range e.Domains {
		if below, ok := strings.CutPrefix(d, "*."); ok {
			if strings.HasSuffix(name, "."+below) {
				return true
			}
		} else if name == d {
			return true
		}
	}
	return false
}

// Names are the names outside of the host that the policy lists by themselves.
func (e *Egress) Names() []string {
	return slices.DeleteFunc(slices.Clone(e.Domains), func(d string) bool {
		return strings.HasPrefix(d, "*.") || slices.Contains(HostNames[:], d)
	})
}

// AllowsHost reports whether the host itself may be reached: by its name, or by
// the gateway's address as an entry of its own. A network that happens to hold that
// address, as 10.0.0.0/8 does, is one of somebody else's.
func (e *Egress) AllowsHost() bool {
	for _, n := range HostNames {
		if e.AllowsName(n) {
			return true
		}
	}
	return e.Lists(netip.MustParseAddr(Gateway)) || e.Lists(netip.MustParseAddr(Gateway6))
}

// Lists reports whether an address is an entry by itself.
func (e *Egress) Lists(a netip.Addr) bool {
	return slices.Contains(e.Prefixes, netip.PrefixFrom(a, a.BitLen()))
}

// AllowsAddr reports whether an address is in one of the networks. It knows
// nothing of addresses that stand for the host.
func (e *Egress) AllowsAddr(a netip.Addr) bool {
	if !e.Restricted {
		return true
	}
	a = a.Unmap()
	for _, p := range e.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Routable reports whether a packet may be sent to an address at all. What is
// a host's own, what is for one link only, and what nobody has, no guest may
// reach through its network: clouds keep a host's credentials at link-local
// addresses.
func Routable(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return false
	}
	if a.Is4() {
		return a.As4()[0] != 0 && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return true
}

// NotOwn returns those of some addresses that are not this host's own. Where a
// name leads to one that is, its owner would open the host to a guest.
func NotOwn(addrs []netip.Addr) ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's own addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, o := range list {
		if n, ok := o.(*net.IPNet); ok {
			a, _ := netip.AddrFromSlice(n.IP)
			own[a.Unmap()] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return own[a.Unmap()] }), nil
}
