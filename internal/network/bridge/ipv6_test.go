package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
)

// A port without a host address is reached by IPv6 also where the kernel passes
// nothing on: on a host that does not forward it, and from an address of the link.
func TestPublishedByIPv6(t *testing.T) {
	neighbour := nettest.Need(t)
	const uplink = "wan0"
	link := linkLocalAddr(t, uplink)
	for _, tt := range []struct{ name, forwarding, to string }{
		{"forwarding", "1", nettest.HostAddr6},
		{"forwarding, from the link", "1", link + "%lan0"},
		{"no forwarding", "0", nettest.HostAddr6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withoutDefaultRoute6(t, uplink) // by which it would be switched on
			if err := writeSysctl(allForwarding6, tt.forwarding); err != nil {
				t.Fatal(err)
			}
			a := start(t, network.Config{Ports: []network.Port{{GuestPort: 80, Protocol: network.TCP}}})
			if sysctlOn(allForwarding6) != (tt.forwarding == "1") {
				t.Fatalf("the host's forwarding is not %s any more", tt.forwarding)
			}
			g := nettest.NewGuest(t, a)
			to := net.JoinHostPort(tt.to, fmt.Sprint(a.Ports()[1].HostPort))
			dial := func() (net.Conn, error) { return neighbour.Dial("tcp6", to) }
			client, server := nettest.Way{Listener: g.Listen(t, "tcp", ":80"), Dial: dial}.Connect(t)
			_ = client.Close()
			from, _, _ := net.SplitHostPort(server.RemoteAddr().String())
			if kept := from == nettest.NeighbourAddr6; kept != (tt.name == "forwarding") {
				t.Errorf("the guest sees the client as %s", from)
			}
		})
	}
}

func linkLocalAddr(t *testing.T, name string) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		l, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := l.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				return strings.Split(p.Addr().String(), "%")[0]
			}
		}
	}
	t.Skipf("%s has no link-local address", name)
	return ""
}

// withoutDefaultRoute6 takes the host's way to the world by IPv6 away until the
// test's end.
func withoutDefaultRoute6(t *testing.T, uplink string) {
	t.Helper()
	l, err := netlink.LinkByName(uplink)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(nettest.NeighbourAddr6)}
	if err := netlink.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.RouteAdd(route); err != nil {
			t.Error(err)
		}
	})
}

// A host where IPv6 is switched off has a bridge without.
func TestDisabledIPv6(t *testing.T) {
	nettest.Need(t)
	const setting = "ipv6/conf/default/disable_ipv6"
	if err := writeSysctl(setting, "1"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := writeSysctl(setting, "0"); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // the second finds the bridge
		a := start(t, network.Config{})
		if addrs := a.(network.Addressed).Addresses(); len(addrs) != 1 || !addrs[0].Is4() {
			t.Errorf("addresses %v, want one of IPv4", addrs)
		}
		g := nettest.NewGuest(t, a)
		l, err := net.Listen("tcp4", ":0")
		if err != nil {
			t.Fatal(err)
		}
		go greet(l)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if !reach(func() (net.Conn, error) { return g.Dial("tcp4", net.JoinHostPort(network.Gateway, port)) }) {
			t.Error("the guest does not reach the host")
		}
		_ = l.Close()
	}
}
