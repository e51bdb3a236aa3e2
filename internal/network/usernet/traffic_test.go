package usernet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/vmm"
)

// patience is the limit on anything that the tests wait for.
const patience = time.Minute

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func TestMain(m *testing.M) { nettest.Main(m, nil) }

func TestConformance(t *testing.T) {
	nettest.Run(t, nettest.Suite{
		New: func() network.Backend { return New() },
		Attach: map[string]vmm.Capabilities{
			"socket": {SockNetwork: true},
			"tap":    {TapNetwork: true},
		},
		HostLoopback: true, HostNames: true, Ports6: true, KeepsSource: true, Ping: true, Egress: true, MaxDatagram: hostport.MaxDatagram,
	})
}

// guestPorts are what the tests below publish, on free ports of the host.
func guestPorts() []network.Port {
	list := []network.Port{{HostIP: loopback, GuestPort: 8080, Protocol: network.UDP}}
	for i := range uint16(2) {
		list = append(list, network.Port{HostIP: loopback, GuestPort: 8080 + i, Protocol: network.TCP})
	}
	return list
}

// A guest whose stack is gVisor's too needs no namespace.
func TestTrafficOverSocket(t *testing.T) {
	a := attach(t, socketVMM, guestPorts()...)
	g := newStackGuest(t, a)
	t.Run("out", func(t *testing.T) {
		l := listenHost(t)
		nettest.Way{Listener: l, Dial: func() (net.Conn, error) { return g.dial("tcp", atGateway(t, l.Addr())) }}.All(t, 20<<20, 400)
	})
	t.Run("published", func(t *testing.T) {
		l := g.listen(t, 8080)
		defer func() { _ = l.Close() }()
		to := a.Ports()[1].HostAddr().String()
		nettest.Way{Listener: l, Dial: func() (net.Conn, error) { return net.DialTimeout("tcp", to, patience) }}.All(t, 20<<20, 400)
	})
	t.Run("refused", func(t *testing.T) {
		l := listenHost(t)
		_ = l.Close()
		if c, err := g.dial("tcp", atGateway(t, l.Addr())); err == nil {
			t.Errorf("connected to a port where nobody listens: %v", c.RemoteAddr())
		}
	})
	t.Run("names", func(t *testing.T) {
		nettest.WantAnswer(t, g.dial, "Host.Docker.Internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, network.Gateway)
		nettest.WantAnswer(t, g.dial, "localhost.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "127.0.0.1")
		nettest.WantAnswer(t, g.dial, "localhost.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, "")
	})
}

func listenHost(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// atGateway is the host's loopback address as the guest sees it.
func atGateway(t testing.TB, a net.Addr) string {
	t.Helper()
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(network.Gateway, port)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// What a name's owner says must not open what is the host's own.
func TestLearned(t *testing.T) {
	g := newGate(network.Egress{Restricted: true, Domains: []string{"example.org"}})
	public := netip.MustParseAddr("192.0.2.1")
	bad := []netip.Addr{gatewayAddr, dnsAddr, loopback, netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("2001:db8::1")}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range own {
		a, _ := netip.AddrFromSlice(o.(*net.IPNet).IP)
		bad = append(bad, a.Unmap(), a) // as IPv6 may have it, too
	}
	g.learn(append([]netip.Addr{public}, bad...))
	if !g.allows(public) {
		t.Error("the name's address is not allowed")
	}
	for _, a := range bad {
		if g.allows(a) {
			t.Errorf("%s is allowed", a)
		}
	}
}

// The gateway is the host's loopback, and not one address among those of a network.
func TestGatewayIsOpenedByItself(t *testing.T) {
	for entries, want := range map[string]bool{
		"all": true, "none": false, "10.0.0.0/8": false, "0.0.0.0/0": false, "10.0.2.0/24": false, "10.0.2.2/31": false,
		"10.0.2.2": true, "10.0.2.2/32": true, "host.docker.internal": true, "10.0.0.0/8,host.containers.internal": true,
	} {
		e, err := network.ParseEgress(strings.Split(entries, ","))
		if err != nil {
			t.Fatal(err)
		}
		if got := newGate(e).allows(gatewayAddr); got != want {
			t.Errorf("%s opens the gateway: %t", entries, got)
		}
	}
}
