package nettest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/network"
)

// find returns the published port of the guest's; of IPv4, if it is in both families.
func find(t testing.TB, a network.Attachment, guestPort uint16) network.Port {
	t.Helper()
	for _, p := range a.Ports() {
		if p.GuestPort == guestPort {
			if p.HostPort == 0 {
				t.Fatalf("port %s has no host port", p)
			}
			return p
		}
	}
	t.Fatalf("port %d is not published: %v", guestPort, a.Ports())
	return network.Port{}
}

func at(addr string, p network.Port) string { return net.JoinHostPort(addr, fmt.Sprint(p.HostPort)) }

// dialer is net.Dial of the host.
func dialer(network, addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.DialTimeout(network, addr, dialTimeout) }
}

// fromOutside is the way from the neighbour to a published port of the guest.
func (r *runner) fromOutside(t testing.TB, g *Guest, network, host string, p network.Port) Way {
	l := g.Listen(t, "tcp", fmt.Sprintf(":%d", p.GuestPort))
	return Way{Listener: l, Dial: func() (net.Conn, error) { return r.neighbour.Dial(network, at(host, p)) }}
}

func (r *runner) testPublished(t *testing.T, a network.Attachment, g *Guest) {
	p, u := find(t, a, portBulk), find(t, a, portUDP)
	// In this order: slirp4netns loses UDP of the host's loopback once others
	// were there.
	for _, from := range []struct {
		name string
		dial func(network, port string) func() (net.Conn, error)
	}{
		{"from localhost", func(network, port string) func() (net.Conn, error) {
			return dialer(network, net.JoinHostPort("127.0.0.1", port))
		}},
		{"from the host", func(network, port string) func() (net.Conn, error) {
			return dialer(network, net.JoinHostPort(HostAddr, port))
		}},
		{"from outside", func(network, port string) func() (net.Conn, error) {
			return func() (net.Conn, error) { return r.neighbour.Dial(network, net.JoinHostPort(HostAddr, port)) }
		}},
	} {
		name, dial := from.name, from.dial
		t.Run(name, func(t *testing.T) {
			l := g.Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk))
			r.all(t, Way{Listener: l, Dial: dial("tcp4", fmt.Sprint(p.HostPort))}, smallBulk, manyConns)
		})
		t.Run(name+", udp", func(t *testing.T) {
			pc := g.ListenPacket(t, "udp4", fmt.Sprintf(":%d", portUDP))
			Datagrams(t, pc, dial("udp4", fmt.Sprint(u.HostPort)), 1, 1400, 9000, r.MaxDatagram)
		})
	}
	t.Run("refused", func(t *testing.T) {
		c, err := dialer("tcp4", at("127.0.0.1", p))()
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		var timeout net.Error
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("read %d bytes, %v from a port where no guest listens", n, err)
		}
	})
	t.Run("source", func(t *testing.T) { r.testSource(t, p, g) })
	t.Run("families", func(t *testing.T) { r.testFamilies(t, a, g) })
	if r.Ports6 {
		t.Run("ipv6", func(t *testing.T) {
			p := find(t, a, port6)
			t.Run("from localhost", func(t *testing.T) {
				l := g.Listen(t, "tcp", fmt.Sprintf(":%d", port6))
				Way{Listener: l, Dial: dialer("tcp6", at("::1", p))}.Bulk(t, smallBulk)
			})
			t.Run("from outside", func(t *testing.T) { r.fromOutside(t, g, "tcp6", HostAddr6, p).Bulk(t, smallBulk) })
		})
	}
}

// needIPv6 skips a test on a host without IPv6.
func needIPv6(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("this host has no IPv6: %v", err)
	}
	_ = l.Close()
}

// testFamilies reaches ports that were published without a host address by either
// family, under one number.
func (r *runner) testFamilies(t *testing.T, a network.Attachment, g *Guest) {
	needIPv6(t)
	var hosts []netip.Addr
	for _, p := range a.Ports() {
		if p.GuestPort == portBulk && p.HostPort == find(t, a, portBulk).HostPort {
			hosts = append(hosts, p.HostIP)
		}
	}
	want := []netip.Addr{netip.IPv4Unspecified()}
	if r.Ports6 {
		want = append(want, netip.IPv6Unspecified())
	}
	if !slices.Equal(hosts, want) {
		t.Fatalf("the port is on %v, want %v", hosts, want)
	}
	p, u := find(t, a, portBulk), find(t, a, portUDP)
	g4 := g.Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk)) // no guest needs IPv6 for it
	for addr, family := range map[string]bool{"127.0.0.1": true, "::1": r.Ports6} {
		dial := dialer("tcp", at(addr, p))
		if !family {
			if c, err := dial(); err == nil {
				t.Errorf("%s is served: %v", addr, c.RemoteAddr())
			}
			continue
		}
		Way{Listener: g4, Dial: dial}.Bulk(t, smallBulk)
	}
	_ = g4.Close()
	if !r.Ports6 {
		return
	}
	r.fromOutside(t, g, "tcp6", HostAddr6, p).Bulk(t, smallBulk)
	pc := g.ListenPacket(t, "udp", fmt.Sprintf(":%d", portUDP))
	Datagrams(t, pc, dialer("udp6", at("::1", u)), 1, 1400, 9000)
	Datagrams(t, pc, func() (net.Conn, error) { return r.neighbour.Dial("udp6", at(HostAddr6, u)) }, 1, 1400, 9000)
}

func (r *runner) testSource(t *testing.T, p network.Port, g *Guest) {
	l := g.Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk))
	_, server := Way{Listener: l, Dial: func() (net.Conn, error) { return r.neighbour.Dial("tcp4", at(HostAddr, p)) }}.Connect(t)
	from, _, _ := net.SplitHostPort(server.RemoteAddr().String())
	if kept := from == NeighbourAddr; kept != r.KeepsSource {
		t.Errorf("the guest sees the client as %s; kept: %t, want %t", from, kept, r.KeepsSource)
	}
}

// testTaken opens ports a second time.
func (r *runner) testTaken(t *testing.T, a network.Attachment) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	other := netip.MustParseAddrPort(l.Addr().String())
	free := network.Port{HostIP: anywhere, GuestPort: 1, Protocol: network.TCP}
	for _, taken := range []network.Port{
		{HostIP: other.Addr(), HostPort: other.Port(), GuestPort: 80, Protocol: network.TCP},
		{HostIP: anywhere, HostPort: find(t, a, portBulk).HostPort, GuestPort: 80, Protocol: network.TCP},
		{HostIP: anywhere, HostPort: find(t, a, portUDP).HostPort, GuestPort: 80, Protocol: network.UDP},
	} {
		r.wantTaken(t, a, taken, []network.Port{free, taken})
	}
	if !r.Ports6 {
		return
	}
	needIPv6(t)
	l6, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l6.Close() }()
	taken := network.Port{HostIP: anywhere, HostPort: netip.MustParseAddrPort(l6.Addr().String()).Port(), GuestPort: 80, Protocol: network.TCP}
	r.wantTaken(t, a, taken.Families()[1], []network.Port{free, taken})
}

// wantTaken tries to have ports of which one is taken, which is said.
func (r *runner) wantTaken(t *testing.T, a network.Attachment, taken network.Port, ports []network.Port) {
	t.Helper()
	cfg := network.Config{ID: "ffffffffffff", Name: "taken", Ports: ports, Capabilities: r.caps}
	b, err := r.New().Start(t.Context(), cfg)
	if err == nil {
		_ = b.Close()
	}
	_, later := a.(network.Publisher).Publish(t.Context(), ports[len(ports)-1])
	for when, err := range map[string]error{"at the start": err, "at run time": later} {
		if !errors.Is(err, network.ErrPortTaken) || !strings.Contains(err.Error(), taken.Families()[0].String()) {
			t.Errorf("%s %s: %v, want ErrPortTaken", taken, when, err)
		}
	}
}

// testRuntime opens and closes a port while the VM runs.
func (r *runner) testRuntime(t *testing.T, a network.Attachment, g *Guest) {
	pub := a.(network.Publisher)
	l := g.Listen(t, "tcp4", fmt.Sprintf(":%d", portLater))
	pc := g.ListenPacket(t, "udp4", fmt.Sprintf(":%d", portLater))
	go echoPackets(pc)
	before := len(a.Ports())
	want := network.Port{HostIP: anywhere, GuestPort: portLater, Protocol: network.TCP}
	for range 3 { // the same port, once it is chosen
		opened, err := pub.Publish(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		p := find(t, a, portLater)
		if !want.Takes(p.HostPort) || opened[0] != p || len(a.Ports()) != before+len(opened) {
			t.Fatalf("published %v, want %s; ports are %v", opened, want, a.Ports())
		}
		want.HostPort = p.HostPort
		client, server := Way{Listener: l, Dial: func() (net.Conn, error) { return r.neighbour.Dial("tcp4", at(HostAddr, p)) }}.Connect(t)
		local, localEnd := Way{Listener: l, Dial: dialer("tcp4", at("127.0.0.1", p))}.Connect(t)
		unpublish(t, pub, opened)
		for _, c := range []func() (net.Conn, error){
			dialer("tcp4", at("127.0.0.1", p)), dialer("tcp4", at(HostAddr, p)),
			dialer("tcp6", at("::1", p)), dialer("tcp6", at(HostAddr6, p)),
			func() (net.Conn, error) { return r.neighbour.Dial("tcp4", at(HostAddr, p)) },
		} {
			if c, err := c(); err == nil {
				t.Errorf("a port that was closed accepts %v", c.LocalAddr())
			}
		}
		for _, ends := range [][2]net.Conn{{client, server}, {localEnd, local}} { // made before: they go on
			if _, err := ends[0].Write([]byte("still here")); err != nil {
				t.Error(err)
			}
			b := make([]byte, 10)
			if _, err := io.ReadFull(ends[1], b); err != nil || string(b) != "still here" {
				t.Errorf("got %q, %v over a connection of a port that was closed since", b, err)
			}
			_, _ = ends[0].Close(), ends[1].Close()
		}
		if err := pub.Unpublish(p); !errors.Is(err, network.ErrNotPublished) {
			t.Errorf("close it twice: %v", err)
		}
	}
	u, err := pub.Publish(t.Context(), network.Port{HostIP: anywhere, GuestPort: portLater, Protocol: network.UDP})
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.neighbour.Dial("udp4", at(HostAddr, u[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := exchange(c, []byte("datagram")); err != nil {
		t.Errorf("UDP: %v", err)
	}
	unpublish(t, pub, u)
	if n := len(a.Ports()); n != before {
		t.Errorf("%d ports are published, want %d as before", n, before)
	}
}

func unpublish(t *testing.T, pub network.Publisher, ports []network.Port) {
	t.Helper()
	for _, p := range ports {
		if err := pub.Unpublish(p); err != nil {
			t.Error(err)
		}
	}
}
