package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// The protocols of published ports.
const (
	TCP = "tcp"
	UDP = "udp"
)

// publishForm is what an error shows of the syntax.
const publishForm = "[HOSTIP:][HOSTPORT:]GUESTPORT[/tcp|udp]"

// String is [HOSTIP:]HOSTPORT->GUESTPORT/PROTOCOL, with brackets around an IPv6
// host address.
func (p Port) String() string { return fmt.Sprintf("%s->%d/%s", p.host(), p.GuestPort, p.Protocol) }

// Spec is the port as ParsePublish reads it.
func (p Port) Spec() string { return fmt.Sprintf("%s:%d/%s", p.host(), p.GuestPort, p.Protocol) }

// host is [HOSTIP:]HOSTPORT[-END].
func (p Port) host() string {
	s := strconv.Itoa(int(p.HostPort))
	if p.HostIP.IsValid() {
		s = p.HostAddr().String()
	}
	if p.HostPortEnd != 0 {
		s += fmt.Sprintf("-%d", p.HostPortEnd)
	}
	return s
}

// Families is the port itself, or, without a host address, that of either family.
func (p Port) Families() []Port {
	if p.HostIP.IsValid() {
		return []Port{p}
	}
	v4, v6 := p, p
	v4.HostIP, v6.HostIP = netip.IPv4Unspecified(), netip.IPv6Unspecified()
	return []Port{v4, v6}
}

// Specs are ports that are open as ParsePublish reads them. One that is open on all
// addresses of both families has none there, so that whoever opens it anew on a free
// port has the same number in both.
func Specs(open []Port) []string {
	var specs []string
	for _, p := range open {
		both := p
		both.HostIP = netip.Addr{}
		if f := both.Families(); slices.Contains(open, f[0]) && slices.Contains(open, f[1]) {
			if p == f[1] {
				continue // it is said with the other
			}
			if p == f[0] {
				p = both
			}
		}
		specs = append(specs, p.Spec())
	}
	return specs
}

// Takes reports whether a port of the host's is one that p can have.
func (p Port) Takes(hostPort uint16) bool {
	return p.HostPort == 0 || p.HostPort <= hostPort && hostPort <= max(p.HostPort, p.HostPortEnd)
}

// HostAddr is where the port is published on the host.
func (p Port) HostAddr() netip.AddrPort { return netip.AddrPortFrom(p.HostIP, p.HostPort) }

// ParsePublish reads the values of -p, as Docker and Podman users write them:
//
//	GUESTPORT, :GUESTPORT         a free host port, on all addresses of both families
//	HOSTPORT:GUESTPORT
//	HOSTIP:HOSTPORT:GUESTPORT     [::1]:8080:80 for an IPv6 address
//	HOSTIP::GUESTPORT             a free host port on that address
//
// each with /tcp (the default) or /udp behind it. A port may be a range
// (8000-8010:80-90), of the same length on both sides; for a single guest port
// (8000-8010:80) any free one of the range will do. Host port 0 also means a free
// one. Errors wrap vm.ErrInvalid.
func ParsePublish(specs []string) ([]Port, error) {
	var ports []Port
	for _, spec := range specs {
		p, err := parseSpec(spec)
		if err != nil {
			return nil, fmt.Errorf("%w: --publish %q: %w", vm.ErrInvalid, spec, err)
		}
		ports = append(ports, p...)
	}
	seen := make(map[Port]bool)
	for _, p := range ports {
		for _, key := range p.Families() {
			key.GuestPort = 0
			if p.HostPort != 0 && p.HostPortEnd == 0 && seen[key] {
				return nil, fmt.Errorf("%w: --publish: %s port %s is given twice", vm.ErrInvalid, p.Protocol, key.HostAddr())
			}
			seen[key] = true
		}
	}
	return ports, nil
}

// portRange has both ends included; the zero value is a free host port.
type portRange struct{ first, last uint16 }

func (r portRange) length() int { return int(r.last) - int(r.first) + 1 }

func parseSpec(spec string) ([]Port, error) {
	rest, protocol, found := strings.Cut(spec, "/")
	if !found {
		protocol = TCP
	}
	protocol = strings.ToLower(protocol)
	if protocol != TCP && protocol != UDP {
		return nil, fmt.Errorf("protocol %q: it is tcp or udp", protocol)
	}
	hostIP, host, guest, err := splitSpec(rest)
	if err != nil {
		return nil, err
	}
	g, err := parseRange("guest", guest)
	if err != nil {
		return nil, err
	}
	if g.first == 0 {
		return nil, fmt.Errorf("guest port 0: it is a number from 1 to 65535")
	}
	var h portRange
	if host != "" {
		if h, err = parseRange("host", host); err != nil {
			return nil, err
		}
	}
	chosen := h != portRange{}
	switch {
	case chosen && h.first == 0:
		return nil, fmt.Errorf("host port range %s: a range starts at 1 or later", host)
	case chosen && g.length() == 1 && h.length() > 1:
		return []Port{{HostIP: hostIP, HostPort: h.first, HostPortEnd: h.last, GuestPort: g.first, Protocol: protocol}}, nil
	case chosen && h.length() != g.length():
		return nil, fmt.Errorf("host ports %s are %d, guest ports %s are %d: both ranges must have the same length, unless it is a single guest port", host, h.length(), guest, g.length())
	}
	list := make([]Port, g.length())
	for i := range list {
		list[i] = Port{HostIP: hostIP, GuestPort: g.first + uint16(i), Protocol: protocol}
		if chosen {
			list[i].HostPort = h.first + uint16(i)
		}
	}
	return list, nil
}

// splitSpec takes [HOSTIP:][HOSTPORT:]GUESTPORT apart.
func splitSpec(s string) (hostIP netip.Addr, host, guest string, err error) {
	if strings.HasPrefix(s, "[") {
		ip, rest, found := strings.Cut(s[1:], "]:")
		if !found {
			return hostIP, "", "", fmt.Errorf("want [HOSTIP]:HOSTPORT:GUESTPORT")
		}
		if hostIP, err = netip.ParseAddr(ip); err != nil || !hostIP.Is6() {
			return hostIP, "", "", fmt.Errorf("host address %q is not an IPv6 address", ip)
		}
		host, guest, found = strings.Cut(rest, ":")
		if !found || strings.Contains(guest, ":") {
			return hostIP, "", "", fmt.Errorf("want [HOSTIP]:HOSTPORT:GUESTPORT")
		}
		return hostIP.Unmap(), host, guest, nil
	}
	switch part := strings.Split(s, ":"); len(part) {
	case 1:
		return hostIP, "", part[0], nil
	case 2:
		return hostIP, part[0], part[1], nil
	case 3:
		if hostIP, err = netip.ParseAddr(part[0]); err != nil {
			return hostIP, "", "", fmt.Errorf("host address %q is not an IP address", part[0])
		}
		return hostIP, part[1], part[2], nil
	default:
		return hostIP, "", "", fmt.Errorf("too many colons: want %s, with an IPv6 host address in brackets", publishForm)
	}
}

// parseRange reads PORT or FIRST-LAST; whose is for the error.
func parseRange(whose, s string) (portRange, error) {
	if s == "" {
		return portRange{}, fmt.Errorf("the %s port is missing: want %s", whose, publishForm)
	}
	first, last, isRange := strings.Cut(s, "-")
	a, err := parsePort(whose, first)
	if err != nil {
		return portRange{}, err
	}
	if !isRange {
		return portRange{a, a}, nil
	}
	b, err := parsePort(whose, last)
	if err != nil {
		return portRange{}, err
	}
	if b < a {
		return portRange{}, fmt.Errorf("%s port range %s: it ends before it starts", whose, s)
	}
	return portRange{a, b}, nil
}

func parsePort(whose, s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s port %q: it is a number from 0 to 65535", whose, s)
	}
	return uint16(n), nil
}
