package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	sysctlDir      = "/proc/sys/net"
	allForwarding6 = "ipv6/conf/all/forwarding"
)

func forceForwarding6(link string) string { return "ipv6/conf/" + link + "/force_forwarding" }

func disableIPv6(link string) string { return "ipv6/conf/" + link + "/disable_ipv6" }

func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join(sysctlDir, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", name, value, err)
	}
	return nil
}

func sysctlOn(name string) bool {
	b, err := os.ReadFile(filepath.Join(sysctlDir, name))
	return err == nil && string(bytes.TrimSpace(b)) == "1"
}

// forward lets the host pass packets on, where it does not yet, and says so.
// The settings stay: others may have come to rely on them.
func (h *host) forward(say func(string)) error {
	if !sysctlOn("ipv4/ip_forward") {
		if err := writeSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
		say("set net.ipv4.ip_forward to 1, for VMs on " + LinkName)
	}
	if !h.subnet6.IsValid() || sysctlOn(allForwarding6) {
		return nil
	}
	uplink := uplink6()
	if uplink == "" {
		return nil // there is no world of IPv6; VMs reach one another without
	}
	// From Linux 6.17 on it can be allowed for two interfaces alone.
	alone := true
	for _, name := range []string{LinkName, uplink} {
		err := writeSysctl(forceForwarding6(name), "1")
		if errors.Is(err, fs.ErrNotExist) {
			alone = false
			break
		}
		if err != nil {
			return err
		}
	}
	if alone {
		say("set net.ipv6.conf.{" + LinkName + "," + uplink + "}.force_forwarding to 1, for VMs on " + LinkName)
		return nil
	}
	// A host that forwards takes no more routes from routers, unless told to.
	if sysctlOn("ipv6/conf/" + uplink + "/accept_ra") {
		if err := writeSysctl("ipv6/conf/"+uplink+"/accept_ra", "2"); err != nil {
			return err
		}
		say("set net.ipv6.conf." + uplink + ".accept_ra to 2, so that it goes on to take routes")
	}
	if err := writeSysctl(allForwarding6, "1"); err != nil {
		return err
	}
	say("set net.ipv6.conf.all.forwarding to 1, for VMs on " + LinkName)
	return nil
}

// forwards6 reports whether VMs are reached by IPv6 through the host.
func forwards6() bool { return sysctlOn(allForwarding6) || sysctlOn(forceForwarding6(LinkName)) }

// uplink6 is the interface of the way to the world by IPv6, or empty.
func uplink6() string {
	list, err := routes(unix.AF_INET6)
	if err != nil {
		return ""
	}
	for _, r := range list {
		if p, ok := prefixOf(r.Dst); (!ok || p.Bits() == 0) && r.Type == unix.RTN_UNICAST {
			if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().Name != "lo" {
				return l.Attrs().Name
			}
		}
	}
	return ""
}
