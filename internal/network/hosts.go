package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// hostGateway stands for the host in --add-host, as Podman and Docker have it.
const hostGateway = "host-gateway"

// ParseHosts reads the values of --add-host, NAME:IP or NAME=IP, several names
// with semicolons between them, as lines of hosts(5). Errors wrap vm.ErrInvalid.
func ParseHosts(values []string) ([]string, error) {
	var lines []string
	for _, v := range values {
		names, ip, ok := cutHost(v)
		ip = strings.Trim(ip, "[]")
		if ip == hostGateway {
			ip = Gateway
		}
		a, err := netip.ParseAddr(ip)
		if !ok || err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%w: --add-host %q: it is NAME:IP, or NAME:%s for the host", vm.ErrInvalid, v, hostGateway)
		}
		for name := range strings.SplitSeq(names, ";") {
			if err := checkDomain(strings.ToLower(name)); err != nil {
				return nil, fmt.Errorf("%w: --add-host %q: %w", vm.ErrInvalid, v, err)
			}
			lines = append(lines, a.String()+"\t"+name)
		}
	}
	return lines, nil
}

// cutHost cuts at the first colon or equals sign: no name has either.
func cutHost(v string) (names, ip string, ok bool) {
	i := strings.IndexAny(v, ":=")
	if i < 0 {
		return v, "", false
	}
	return v[:i], v[i+1:], true
}
