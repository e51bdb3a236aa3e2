package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/nettest"
)

// A client whose address is also one of the guest's own network, as on hosts in
// VirtualBox or QEMU, is answered.
func TestClientInGuestsNetwork(t *testing.T) {
	neighbour := nettest.Need(t)
	l, err := netlink.LinkByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	host, err := netlink.ParseAddr(network.GuestAddress)
	if err == nil {
		err = netlink.AddrAdd(l, host)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.AddrDel(l, host) })
	if err := neighbour.AddAddr("lan0", network.Gateway+"/24"); err != nil {
		t.Fatal(err)
	}
	a := start(t, network.Config{Ports: []network.Port{tcpPort(80)}})
	go greet(nettest.NewGuest(t, a).Listen(t, "tcp4", ":80"))
	to := net.JoinHostPort(netip.MustParsePrefix(network.GuestAddress).Addr().String(), fmt.Sprint(a.Ports()[0].HostPort))
	if !reach(func() (net.Conn, error) { return neighbour.Dial("tcp4", to) }) {
		t.Error("a neighbour with the gateway's address does not reach a published port")
	}
	if !reach(func() (net.Conn, error) { return net.DialTimeout("tcp4", to, 10*time.Second) }) {
		t.Error("a host with the guest's address does not reach a published port")
	}
}

// However many ports a VM has, clients whom the supervisor serves share one limit.
func TestPortsShareLimit(t *testing.T) {
	nettest.Need(t)
	a := start(t, network.Config{Ports: []network.Port{tcpPort(80), tcpPort(81)}}).(*attachment)
	g := nettest.NewGuest(t, a)
	for _, addr := range []string{":80", ":81"} {
		go greet(g.Listen(t, "tcp4", addr))
	}
	open := func() (n int) {
		for _, p := range a.Ports() {
			if reach(func() (net.Conn, error) {
				return net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", p.HostPort), 10*time.Second)
			}) {
				n++
			}
		}
		return n
	}
	if n := open(); n != 2 {
		t.Errorf("%d ports are reached, want 2", n)
	}
	for range maxTCP {
		a.limits.TCP <- struct{}{}
	}
	if n := open(); n != 0 {
		t.Errorf("%d ports are reached beyond the limit", n)
	}
	for range maxTCP {
		hostport.Release(a.limits.TCP)
	}
	if n := open(); n != 2 {
		t.Errorf("%d ports are reached again, want 2", n)
	}
}
