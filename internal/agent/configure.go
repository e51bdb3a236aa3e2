package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// configure makes the guest what the plan says: its name and its network.
func configure(plan *agentapi.Plan) error {
	if err := unix.Sethostname([]byte(plan.Hostname)); err != nil {
		return fmt.Errorf("set hostname %q: %w", plan.Hostname, err)
	}
	if err := ownMachineID("/etc/machine-id"); err != nil {
		return fmt.Errorf("make a machine id: %w", err)
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	sysctls(map[string]string{
		"net/ipv4/ip_forward":                 "1",
		"net/ipv4/ping_group_range":           "0 2147483647",
		"net/ipv4/ip_unprivileged_port_start": "0", // as in a container of Docker's
	})
	if n := plan.Network; n != nil {
		if err := configureLink(n); err != nil {
			return err
		}
	}
	return writeNetFiles(plan)
}

// sysctls are conveniences: a kernel that lacks one does without.
func sysctls(values map[string]string) {
	for name, value := range values {
		_ = os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
	}
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find network interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

func configureLink(n *agentapi.Network) error {
	l, err := netlink.LinkByName(n.Interface)
	if err != nil {
		return fmt.Errorf("find network interface %s: %w", n.Interface, err)
	}
	if n.MTU > 0 {
		if err := netlink.LinkSetMTU(l, n.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", n.Interface, n.MTU, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", n.Interface, err)
	}
	for _, a := range []struct{ address, gateway string }{{n.Address, n.Gateway}, {n.Address6, n.Gateway6}} {
		if a.address == "" {
			continue
		}
		if err := configureAddress(l, a.address, a.gateway); err != nil {
			return err
		}
	}
	return nil
}

func configureAddress(l netlink.Link, address, gateway string) error {
	name := l.Attrs().Name
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD // nobody else is on the link
	}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, address, err)
	}
	if gateway == "" {
		return nil
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
		return fmt.Errorf("route through %s: %w", gateway, err)
	}
	return nil
}

// writeNetFiles writes what Podman takes over into the container.
func writeNetFiles(plan *agentapi.Plan) error {
	return errors.Join(
		replaceFile("/etc/resolv.conf", resolvConf(plan.Network)),
		replaceFile("/etc/hosts", hostsFile(plan)),
		replaceFile("/etc/hostname", plan.Hostname+"\n"),
	)
}

// resolvConf is the text of resolv.conf(5); empty without a network.
func resolvConf(n *agentapi.Network) string {
	var b strings.Builder
	if n == nil {
		return ""
	}
	for _, s := range n.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(n.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(n.Search, " "))
	}
	return b.String()
}

// hostsFile is the text of hosts(5): the guest finds itself by its name, and
// the host by the one that Podman gives it.
func hostsFile(plan *agentapi.Plan) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, line := range plan.Hosts { // before the rest: the first one counts
		b.WriteString(line + "\n")
	}
	n := plan.Network
	if n == nil {
		fmt.Fprintf(&b, "127.0.1.1\t%s\n", plan.Hostname)
		return b.String()
	}
	ip, _, _ := strings.Cut(n.Address, "/")
	fmt.Fprintf(&b, "%s\t%s\n", ip, plan.Hostname)
	if n.Gateway != "" {
		fmt.Fprintf(&b, "%s\thost.containers.internal\n", n.Gateway)
	}
	return b.String()
}

// replaceFile writes a file in place of whatever is there, be it a link.
func replaceFile(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}
