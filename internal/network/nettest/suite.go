package nettest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm"
)

// Suite says what a backend promises.
type Suite struct {
	New    func() network.Backend
	Attach map[string]vmm.Capabilities // the ways in which VMMs attach, by a name for the test

	HostLoopback bool // the gateway stands for the host's loopback; else for one of its addresses
	HostNames    bool // its name server knows the host
	KeepsSource  bool // a published port sees the address of a client outside
	Ports6       bool // ports can be published on IPv6 addresses of the host
	GuestIPv6    bool // the guest's link carries IPv6
	OneByOne     bool // is tried with one connection at a time: with more it drops some, for a second each
	LosesResets  bool // a connection that is reset looks like one that ended
	LinkLocal    bool // does not keep guests from the host's link-local addresses
	Ping         bool // echo requests are sent on
	Egress       bool // has egress policies
	MaxDatagram  int  // payload of the largest datagram, bytes
}

// What a published port of each protocol is on in the guest.
const (
	portBulk = 8080 + iota
	portUDP
	port6
	portLater
)

// sizes of the suite: what is sent each way, bytes, and connections.
const (
	bulkSize    = 200e6
	smallBulk   = 20e6
	manyConns   = 1000
	pathMTU     = 1280
	closeWithin = 10 * time.Second
)

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	neighbour := Need(t)
	names := ServeNames(t, neighbour)
	for name, caps := range s.Attach {
		t.Run(name, func(t *testing.T) {
			r := &runner{Suite: s, caps: caps, neighbour: neighbour, names: names}
			r.run(t)
		})
	}
}

// all tries everything that TCP is to do.
func (r *runner) all(t *testing.T, w Way, size int64, conns int) {
	if r.LosesResets {
		t.Run("bulk", func(t *testing.T) { w.Bulk(t, size) })
		t.Run("half-close", func(t *testing.T) { w.HalfClose(t) })
		t.Run("short", func(t *testing.T) { w.Short(t, conns, r.atOnce()) })
		return
	}
	w.All(t, size, conns)
}

func (r *runner) atOnce() int {
	if r.OneByOne {
		return 1
	}
	return atOnce
}

type runner struct {
	Suite
	caps      vmm.Capabilities
	neighbour *Sockets
	names     *NameServer
}

func (r *runner) run(t *testing.T) {
	t.Run("one VM", func(t *testing.T) {
		ports := []network.Port{
			{HostIP: anywhere, GuestPort: portBulk, Protocol: network.TCP},
			{HostIP: anywhere, GuestPort: portUDP, Protocol: network.UDP},
		}
		if r.Ports6 {
			ports = append(ports, network.Port{HostIP: netip.IPv6Unspecified(), GuestPort: port6, Protocol: network.TCP})
		}
		a := r.Start(t, network.Config{Ports: ports})
		g := NewGuest(t, a)
		t.Run("names", func(t *testing.T) { r.testNames(t, g) })
		t.Run("out", func(t *testing.T) { r.testOut(t, g) })
		t.Run("host", func(t *testing.T) { r.testHost(t, g) })
		t.Run("published", func(t *testing.T) { r.testPublished(t, a, g) })
		t.Run("taken", func(t *testing.T) { r.testTaken(t, a) })
		t.Run("at run time", func(t *testing.T) { r.testRuntime(t, a, g) })
		if r.Ping {
			t.Run("ping", func(t *testing.T) { r.testPing(t, g) })
		}
		t.Run("small path", func(t *testing.T) { r.testSmallPath(t, a, g) })
	})
	t.Run("two VMs", r.testTwo)
	t.Run("again at once", r.testAgain)
	t.Run("another VMM", r.testNextVMM)
	if r.HostNames {
		t.Run("silent name server", r.testSilentNames)
	}
	if !r.LinkLocal {
		t.Run("hidden", r.testHidden)
	}
	if r.Egress {
		t.Run("egress", r.testEgress)
	}
}

// anywhere is no address: a port is on all of the host's.
var anywhere netip.Addr

var vmCount = func() func() int {
	var mu sync.Mutex
	n := 0
	return func() int { mu.Lock(); defer mu.Unlock(); n++; return n }
}()

// Start starts a VM's network as a driver of these abilities would, and
// checks at the test's end that it closes and leaves no goroutine.
func (r *runner) Start(t testing.TB, cfg network.Config) network.Attachment {
	t.Helper()
	cfg.Capabilities = r.caps
	return Start(t, r.New(), cfg)
}

// Start starts a network, and checks at the test's end that it closes and
// leaves no goroutine.
func Start(t testing.TB, b network.Backend, cfg network.Config) network.Attachment {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	if cfg.ID == "" {
		n := vmCount()
		cfg.ID, cfg.Name = fmt.Sprintf("%012x", n), fmt.Sprintf("vm%d", n)
	}
	a, err := b.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		start := time.Now()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > closeWithin {
			t.Errorf("closing took %v", d)
		}
		goleak.VerifyNone(t, leaks)
	})
	return a
}

// way is from the guest to a listener in the neighbour's namespace.
func (r *runner) way(t testing.TB, g *Guest, network, addr string) Way {
	l := r.neighbour.Listen(t, network, net.JoinHostPort(addr, "0"))
	return Way{Listener: l, Dial: func() (net.Conn, error) { return g.Dial(network, l.Addr().String()) }}
}

func (r *runner) testNames(t *testing.T, g *Guest) {
	WantAnswer(t, g.Dial, OutsideName, dnsmessage.TypeA, dnsmessage.RCodeSuccess, NeighbourAddr)
	WantAnswer(t, g.Dial, "absent.test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "")
	WantAnswer(t, g.Dial, OutsideName, dnsmessage.TypeTXT, dnsmessage.RCodeSuccess, "text")
	if r.HostNames {
		for _, name := range network.HostNames {
			WantAnswer(t, g.Dial, name+".", dnsmessage.TypeA, dnsmessage.RCodeSuccess, network.Gateway)
		}
		want := ""
		if r.GuestIPv6 {
			want = NeighbourAddr6
		}
		WantAnswer(t, g.Dial, OutsideName, dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, want)
	}
}

// testSilentNames has a first name server that does not answer.
func (r *runner) testSilentNames(t *testing.T) {
	_ = r.neighbour.ListenPacket(t, "udp6", "["+NeighbourAddr6+"]:53")
	a := r.Start(t, network.Config{Servers: []netip.Addr{netip.MustParseAddr(NeighbourAddr6), netip.MustParseAddr(NeighbourAddr)}})
	g := NewGuest(t, a)
	for range 2 {
		code, answers, err := Ask(g.Dial, network.UDP, OutsideName, dnsmessage.TypeA)
		if err != nil || code != dnsmessage.RCodeSuccess || len(answers) != 1 {
			t.Errorf("%s %q, %v", code, answers, err)
		}
	}
}

func (r *runner) testOut(t *testing.T, g *Guest) {
	r.all(t, r.way(t, g, "tcp4", NeighbourAddr), bulkSize, manyConns)
	t.Run("refused", func(t *testing.T) {
		l := r.neighbour.Listen(t, "tcp4", NeighbourAddr+":0")
		_ = l.Close()
		// The neighbour has closed its own copy once it answers again.
		_ = r.neighbour.ListenPacket(t, "udp4", NeighbourAddr+":0")
		if c, err := g.Dial("tcp4", l.Addr().String()); err == nil {
			t.Errorf("connected to a port where nobody listens: %v", c.RemoteAddr())
		}
	})
	t.Run("udp", func(t *testing.T) {
		pc := r.neighbour.ListenPacket(t, "udp4", NeighbourAddr+":0")
		Datagrams(t, pc, func() (net.Conn, error) { return g.Dial("udp4", pc.LocalAddr().String()) }, 0, 1, 1400, 1473, 9000, r.MaxDatagram)
	})
	if !r.GuestIPv6 {
		return
	}
	t.Run("ipv6", func(t *testing.T) { r.way(t, g, "tcp6", NeighbourAddr6).All(t, smallBulk, 80) })
	t.Run("ipv6 udp", func(t *testing.T) {
		pc := r.neighbour.ListenPacket(t, "udp6", "["+NeighbourAddr6+"]:0")
		Datagrams(t, pc, func() (net.Conn, error) { return g.Dial("udp6", pc.LocalAddr().String()) }, 1, 1400, 9000)
	})
}

// testHost reaches a program on the host through the gateway.
func (r *runner) testHost(t *testing.T, g *Guest) {
	addr := "0.0.0.0:0"
	if r.HostLoopback {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r.all(t, Way{Listener: l, Dial: func() (net.Conn, error) { return g.Dial("tcp4", net.JoinHostPort(network.Gateway, port)) }}, smallBulk, 80)
}

func (r *runner) testPing(t *testing.T, g *Guest) {
	for _, addr := range []string{network.Gateway, NeighbourAddr} {
		if err := g.Ping(addr, []byte("fcvm")); err != nil {
			t.Errorf("ping %s: %v", addr, err)
		}
	}
}

// testSmallPath sends over a path whose packets are smaller than the guest's,
// by connections that either side opens.
func (r *runner) testSmallPath(t *testing.T, a network.Attachment, g *Guest) {
	SetPathMTU(t, NeighbourAddr, pathMTU)
	t.Run("out", func(t *testing.T) { r.way(t, g, "tcp4", NeighbourAddr).Bulk(t, smallBulk) })
	t.Run("published", func(t *testing.T) {
		r.fromOutside(t, g, "tcp4", HostAddr, find(t, a, portBulk)).Bulk(t, smallBulk)
	})
	if r.GuestIPv6 || r.Ports6 {
		SetPathMTU(t, NeighbourAddr6, pathMTU)
	}
	if r.GuestIPv6 {
		t.Run("out, ipv6", func(t *testing.T) { r.way(t, g, "tcp6", NeighbourAddr6).Bulk(t, smallBulk) })
	}
	if r.Ports6 {
		t.Run("published, ipv6", func(t *testing.T) {
			r.fromOutside(t, g, "tcp6", HostAddr6, find(t, a, port6)).Bulk(t, smallBulk)
		})
	}
}

// testTwo runs two VMs, whose guests have the same address, side by side.
func (r *runner) testTwo(t *testing.T) {
	var work sync.WaitGroup
	guests, ports := make([]*Guest, 2), make([]network.Port, 2)
	for i := range guests {
		a := r.Start(t, network.Config{Ports: []network.Port{{HostIP: anywhere, GuestPort: portBulk, Protocol: network.TCP}}})
		guests[i], ports[i] = NewGuest(t, a), find(t, a, portBulk)
		l := guests[i].Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%d", i)
				_ = c.Close()
			}
		}()
	}
	for i, g := range guests {
		work.Go(func() {
			for range 20 {
				for _, dial := range []func() (net.Conn, error){
					dialer("tcp4", at("127.0.0.1", ports[i])),
					func() (net.Conn, error) { return r.neighbour.Dial("tcp4", at(HostAddr, ports[i])) },
				} {
					if got, err := readAll(dial); err != nil || got != fmt.Sprint(i) {
						t.Errorf("VM %d answers %q, %v", i, got, err)
					}
				}
			}
		})
		w := r.way(t, g, "tcp4", NeighbourAddr)
		work.Go(func() { w.Bulk(t, smallBulk) })
	}
	work.Wait()
}

func readAll(dial func() (net.Conn, error)) (string, error) {
	c, err := dial()
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(io.LimitReader(c, 100))
	return string(b), err
}

// testAgain starts a VM on the port of one that was just ended, with
// connections open.
func (r *runner) testAgain(t *testing.T) {
	port := network.Port{HostIP: anywhere, GuestPort: portBulk, Protocol: network.TCP}
	for range 3 {
		func() {
			cfg := network.Config{ID: fmt.Sprintf("%012x", vmCount()), Name: "again", Ports: []network.Port{port}, Capabilities: r.caps}
			a, err := r.New().Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}()
			g := NewGuest(t, a)
			defer g.Kill()
			port.HostPort = find(t, a, portBulk).HostPort
			l := g.Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk))
			defer func() { _ = l.Close() }()
			for _, dial := range []func() (net.Conn, error){
				dialer("tcp4", at("127.0.0.1", port)),
				func() (net.Conn, error) { return r.neighbour.Dial("tcp4", at(HostAddr, port)) },
			} {
				client, server := Way{Listener: l, Dial: dial}.Connect(t)
				if _, err := client.Write([]byte("x")); err != nil {
					t.Error(err)
				}
				if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
					t.Error(err)
				}
			}
		}()
	}
}

// testNextVMM ends a VM's VMM and starts another one on the same network, as a start
// from a snapshot that fails is followed by a boot.
func (r *runner) testNextVMM(t *testing.T) {
	a := r.Start(t, network.Config{Ports: []network.Port{{HostIP: anywhere, GuestPort: portBulk, Protocol: network.TCP}}})
	port := find(t, a, portBulk)
	for range 3 {
		g := NewGuest(t, a)
		WantAnswer(t, g.Dial, OutsideName, dnsmessage.TypeA, dnsmessage.RCodeSuccess, NeighbourAddr)
		r.way(t, g, "tcp4", NeighbourAddr).Bulk(t, smallBulk)
		in := Way{Listener: g.Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk)), Dial: dialer("tcp4", at("127.0.0.1", port))}
		in.Bulk(t, smallBulk)
		client, _ := in.Connect(t) // and goes on to be sent to
		go func() { _, _ = io.Copy(client, zeros{}) }()
		g.Kill()
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// testHidden tries what no guest may reach: link-local addresses, where
// clouds keep the host's credentials.
func (r *runner) testHidden(t *testing.T) {
	addLinkLocal(t)
	l, err := net.Listen("tcp4", linkLocal+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	g := NewGuest(t, r.Start(t, network.Config{}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := g.Dial("tcp4", l.Addr().String()); err == nil {
			t.Error("the guest reaches a link-local address of the host")
			_ = c.Close()
		}
	}()
	<-done
}

func (r *runner) testEgress(t *testing.T) {
	const open, closed = "open", "closed"
	for _, tt := range []struct {
		egress string
		addr   string // a connection to the neighbour, by its address
		name   string // the same, once its name was looked up
		host   string // a connection to the host
	}{
		{"all", open, open, open},
		{"none", closed, closed, closed},
		{NeighbourAddr + "/32", open, open, closed},
		{"192.0.2.0/24", closed, closed, closed},
		{"outside.test", open, open, closed}, // it is looked up in any case
		{"*.test", closed, open, closed},
		{"*.outside.test,host.containers.internal", closed, closed, open},
		{"10.0.0.0/8", closed, closed, closed}, // in which the gateway is, and the bridge
		{"0.0.0.0/0,::/0", open, open, closed},
		{network.Gateway, closed, closed, open},
	} {
		t.Run(tt.egress, func(t *testing.T) {
			e, err := network.ParseEgress(splitList(tt.egress))
			if err != nil {
				t.Fatal(err)
			}
			a := r.Start(t, network.Config{Egress: e, Ports: []network.Port{{HostIP: anywhere, GuestPort: portBulk, Protocol: network.TCP}}})
			g := NewGuest(t, a)
			want := func(what, want string, dial func() (net.Conn, error), l net.Listener) {
				t.Helper()
				state := closed
				go echo(l)
				if err := echoOnce(dial, "x"); err == nil {
					state = open
				}
				if state != want {
					t.Errorf("%s is %s, want %s", what, state, want)
				}
			}
			out := r.way(t, g, "tcp4", NeighbourAddr)
			if slices.Contains(e.Names(), "outside.test") {
				go echo(out.Listener)
				for end := time.Now().Add(patience); echoOnce(out.Dial, "x") != nil && time.Now().Before(end); {
					time.Sleep(10 * time.Millisecond)
				}
			}
			want("the address", tt.addr, out.Dial, out.Listener)
			if tt.addr == closed {
				if c, err := g.Dial("udp4", NeighbourAddr+":53"); err == nil {
					if answered(c) {
						t.Error("a datagram got out")
					}
				}
			}
			asked := r.names.asked.Load()
			code, answers, err := Ask(g.Dial, network.UDP, OutsideName, dnsmessage.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			if allowed := e.AllowsName("outside.test"); (len(answers) == 1) != allowed || (r.names.asked.Load() > asked) != allowed {
				t.Errorf("name is answered with %s %v, %d questions left the host", code, answers, r.names.asked.Load()-asked)
			}
			want("the name", tt.name, out.Dial, out.Listener)
			host, err := net.Listen("tcp4", "0.0.0.0:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = host.Close() }()
			_, port, _ := net.SplitHostPort(host.Addr().String())
			want("the host", tt.host, func() (net.Conn, error) { return g.Dial("tcp4", net.JoinHostPort(network.Gateway, port)) }, host)
			// What comes in is answered, whatever the policy.
			l := g.Listen(t, "tcp4", fmt.Sprintf(":%d", portBulk))
			want("a published port", open, dialer("tcp4", at("127.0.0.1", find(t, a, portBulk))), l)
			want("a published port from outside", open, func() (net.Conn, error) { return r.neighbour.Dial("tcp4", at(HostAddr, find(t, a, portBulk))) }, l)
		})
	}
}
