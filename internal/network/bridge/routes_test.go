package bridge

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
)

// vpn is an interface as VPNs have it, with routes in a table.
func vpn(t *testing.T, table int, dsts ...string) {
	t.Helper()
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vpn0", MTU: 1380}}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(l) })
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	for _, dst := range dsts {
		_, n, err := net.ParseCIDR(dst)
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Index, Dst: n, Table: table})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A VPN that takes all traffic has two routes that overlap every network, and stand
// for a default route.
func TestRoutesToEverything(t *testing.T) {
	nettest.Need(t)
	vpn(t, 0, "0.0.0.0/1", "128.0.0.0/1")
	a, err := New(netip.Prefix{}).Start(t.Context(), network.Config{ID: "00000000000a", Name: "x", Capabilities: tapVMM})
	if err != nil {
		t.Fatal(err)
	}
	if a.MTU() != 1380 {
		t.Errorf("MTU %d, that of the VPN is 1380", a.MTU())
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// A route of another table that comes before the main one would take the VMs'
// packets away.
func TestRoutesOfOtherTables(t *testing.T) {
	nettest.Need(t)
	const table = 52
	vpn(t, table, "10.0.0.0/8")
	rule := netlink.NewRule()
	rule.Table, rule.Priority = table, 5270
	if err := netlink.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.RuleDel(rule); err != nil {
			t.Error(err)
		}
	})
	_, err := findHost(netip.Prefix{})
	wantError(t, err, network.ErrCollision, DefaultSubnet, "10.0.0.0/8", "vpn0", "--subnet")
	if _, err := findHost(netip.MustParsePrefix("172.31.0.0/16")); err != nil {
		t.Error(err)
	}
}
