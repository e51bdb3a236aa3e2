package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// hostGateway stands for the host in --add-host, as Podman and Docker have it.
const hostGateway = "host-gateway"

// ParseHosts reads the values of --add-host, NAME:IP, as lines of hosts(5).
// Errors wrap vm.ErrInvalid.
func ParseHosts(values []string) ([]string, error) {
	var lines []string
	for _, v := range values {
		name, ip, ok := strings.Cut(v, ":")
		ip = strings.Trim(ip, "[]")
		if ip == hostGateway {
			ip = Gateway
		}
		a, err := netip.ParseAddr(ip)
		if !ok || err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%w: --add-host %q: it is NAME:IP, or NAME:%s for the host", vm.ErrInvalid, v, hostGateway)
		}
		if err := checkDomain(strings.ToLower(name)); err != nil {
			return nil, fmt.Errorf("%w: --add-host %q: %w", vm.ErrInvalid, v, err)
		}
		lines = append(lines, a.String()+"\t"+name)
	}
	return lines, nil
}
