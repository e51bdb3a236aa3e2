package bridge

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/network/slirp"
	"github.com/fcvm/fcvm/internal/network/usernet"
	"github.com/fcvm/fcvm/internal/vmm"
)

// BenchmarkNetworks measures every backend beside a bare tap, on which the
// host itself has the gateway's address: nothing can be faster.
func BenchmarkNetworks(b *testing.B) {
	b.Run("bare-tap-1500", func(b *testing.B) { benchmarkBareTap(b, 1500) })
	b.Run("bridge", func(b *testing.B) { nettest.Benchmark(b, New(netip.Prefix{}), tapVMM) })
	b.Run("bare-tap-65520", func(b *testing.B) { benchmarkBareTap(b, 65520) })
	b.Run("usernet-tap", func(b *testing.B) { nettest.Benchmark(b, usernet.New(), tapVMM) })
	b.Run("usernet-socket", func(b *testing.B) {
		nettest.Benchmark(b, usernet.New(), vmm.Capabilities{SockNetwork: true})
	})
	b.Run("slirp4netns", func(b *testing.B) {
		if err := slirp.New().Available(); err != nil {
			b.Skip(err)
		}
		nettest.Benchmark(b, slirp.New(), tapVMM)
	})
}

// bareTap is a tap in a namespace, with the host's sockets in the same.
type bareTap struct {
	ns  *netns.Namespace
	mtu int
}

func (bareTap) Ports() []network.Port    { return nil }
func (t bareTap) MTU() int               { return t.mtu }
func (t bareTap) Close() error           { return t.ns.Close() }
func (t bareTap) Launcher() vmm.Launcher { return t.ns }
func (t bareTap) Net() *vmm.Net          { return &vmm.Net{MAC: vmm.GuestMAC, Tap: network.TapName, MTU: t.mtu} }

func benchmarkBareTap(b *testing.B, mtu int) {
	nettest.Need(b)
	ns, err := netns.New()
	if err != nil {
		b.Fatal(err)
	}
	t := bareTap{ns, mtu}
	b.Cleanup(func() { _ = t.Close() })
	a := attachment{host: &host{mtu: mtu}}
	var l net.Listener
	err = ns.Do(func() error {
		err := a.configureTap()
		if err == nil {
			l, err = net.Listen("tcp4", network.Gateway+":0")
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	g := nettest.NewGuest(b, t)
	in := g.Listen(b, "tcp4", ":8080")
	nettest.BenchmarkWays(b,
		nettest.Way{Listener: l, Dial: func() (net.Conn, error) { return g.Dial("tcp4", l.Addr().String()) }},
		nettest.Way{Listener: in, Dial: func() (c net.Conn, err error) {
			var d net.Dialer
			err = ns.Do(func() error {
				c, err = d.DialContext(context.Background(), "tcp4", guest4.Addr().String()+":8080")
				return err
			})
			return c, err
		}})
}

var _ network.Attachment = bareTap{}
