package nettest

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkLocal is an address of the scratch host as clouds keep credentials at.
const linkLocal = "169.254.169.254"

func addLinkLocal(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(linkLocal + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.AddrDel(lo, addr); err != nil {
			t.Error(err)
		}
	})
}

// SetPathMTU makes the scratch host's way to an address smaller, bytes, until the test's end.
func SetPathMTU(t testing.TB, addr string, mtu int) {
	t.Helper()
	l, err := netlink.LinkByName(hostLink)
	if err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr(addr)
	route := &netlink.Route{
		LinkIndex: l.Attrs().Index, MTU: mtu, MTULock: true, Scope: unix.RT_SCOPE_LINK,
		Dst: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())},
	}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.RouteDel(route); err != nil {
			t.Error(err)
		}
	})
}

func splitList(s string) []string { return strings.Split(s, ",") }
