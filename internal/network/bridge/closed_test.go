package bridge

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
)

// Other VMs, and the host, are opened by entries of their own or of the bridge's
// network, and not by a network that theirs is a part of.
func TestEgressOnTheBridge(t *testing.T) {
	nettest.Need(t)
	web := start(t, network.Config{ID: "00000000000a", Name: "web"})
	go greet(nettest.NewGuest(t, web).Listen(t, "tcp", ":80"))
	addrs := web.(network.Addressed).Addresses()
	host, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	go greet(host)
	_, port, _ := net.SplitHostPort(host.Addr().String())
	bridge6, _ := addrs[1].Prefix(64)
	for _, tt := range []struct {
		egress        []string
		vm, vm6, host bool
	}{
		{[]string{"10.0.0.0/8", "fc00::/7"}, false, false, false},
		{[]string{"0.0.0.0/0", "::/0"}, false, false, false},
		{[]string{DefaultSubnet}, true, false, false},
		{[]string{bridge6.String()}, false, true, false},
		{[]string{"10.0.0.0/8", addrs[0].String()}, true, false, false},
		{[]string{"10.201.0.1"}, false, false, true},
		{[]string{network.Gateway, addrs[1].String()}, false, true, true},
	} {
		e, err := network.ParseEgress(tt.egress)
		if err != nil {
			t.Fatal(err)
		}
		g := nettest.NewGuest(t, start(t, network.Config{Egress: e}))
		for _, to := range []struct {
			addr string
			want bool
		}{
			{net.JoinHostPort(addrs[0].String(), "80"), tt.vm},
			{net.JoinHostPort(addrs[1].String(), "80"), tt.vm6},
			{net.JoinHostPort(network.Gateway, port), tt.host},
			{net.JoinHostPort("10.201.0.1", port), tt.host},
		} {
			if got := reach(func() (net.Conn, error) { return g.Dial("tcp", to.addr) }); got != to.want {
				t.Errorf("%q: %s is reached: %t", tt.egress, to.addr, got)
			}
		}
	}
}

// An address that a name stands for is open before the guest has asked for it, and
// known to be used when it was connected to: so it stays open.
func TestUsedAddressesAreKnown(t *testing.T) {
	neighbour := nettest.Need(t)
	nettest.ServeNames(t, neighbour)
	e, err := network.ParseEgress([]string{strings.TrimSuffix(nettest.OutsideName, ".")})
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, network.Config{Egress: e}).(*attachment)
	g := nettest.NewGuest(t, a)
	for family, addr := range map[string]string{"tcp4": nettest.NeighbourAddr, "tcp6": nettest.NeighbourAddr6} {
		l := neighbour.Listen(t, family, net.JoinHostPort(addr, "0"))
		go greet(l)
		if used := a.learned.listUsed(); slices.Contains(used, netip.MustParseAddr(addr)) {
			t.Errorf("used before it was: %v", used)
		}
		for end := time.Now().Add(time.Minute); !reach(func() (net.Conn, error) { return g.Dial(family, l.Addr().String()) }); {
			if time.Now().After(end) {
				t.Fatalf("%s is not open", addr)
			}
		}
		if used := a.learned.listUsed(); !slices.Contains(used, netip.MustParseAddr(addr)) {
			t.Errorf("%s is not among the addresses that were used: %v", addr, used)
		}
	}
}

// A neighbour that knows the bridge's network reaches published ports only.
func TestUnpublishedPortsAreClosed(t *testing.T) {
	neighbour := nettest.Need(t)
	a := start(t, network.Config{})
	go greet(nettest.NewGuest(t, a).Listen(t, "tcp4", ":80"))
	if err := neighbour.Route(DefaultSubnet, nettest.HostAddr); err != nil {
		t.Fatal(err)
	}
	if reach(func() (net.Conn, error) {
		return neighbour.Dial("tcp4", net.JoinHostPort(a.(network.Addressed).Addresses()[0].String(), "80"))
	}) {
		t.Error("a neighbour reaches a port that is not published")
	}
}
