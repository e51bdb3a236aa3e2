package network

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/test/e2e/network/netpeer"
)

// suite is one network, and what is expected of it beyond what all do.
type suite struct {
	account
	backend     string
	maxDatagram int  // bytes
	oneByOne    bool // with more connections at a time it drops some, for a second each
	between     bool // VMs reach one another
	egress      bool // guests can be kept from the world

	image     string
	neighbour *nettest.Sockets
}

// Sizes of what is tried.
const (
	bulkSize   = 200e6 // bytes each way
	conns      = 1000
	connsSmall = 40
	pathMTU    = 1280
)

func suites() []suite {
	return []suite{
		{backend: "usernet", account: account{user: true}, maxDatagram: 65507, egress: true},
		{backend: "slirp4netns", account: account{user: true}, maxDatagram: 9000, oneByOne: true},
		{backend: "bridge", maxDatagram: 65507, between: true, egress: true},
	}
}

// TestNetwork is the suite, for every network on the driver under test.
func TestNetwork(t *testing.T) {
	neighbour := nettest.Need(t)
	nettest.ServeNames(t, neighbour)
	image := peerImage(t)
	for _, s := range suites() {
		s.image, s.neighbour = image, neighbour
		t.Run(s.backend, s.run)
	}
}

// missing says what this host or user lacks for the network; empty: nothing.
func (s *suite) missing() string {
	if _, err := exec.LookPath(s.backend); s.backend == "slirp4netns" && err != nil {
		return "slirp4netns is not installed (Debian package slirp4netns)"
	}
	if s.backend == "bridge" && os.Getenv(envRealRoot) == "" {
		return "the bridge needs root"
	}
	return ""
}

func (s *suite) run(t *testing.T) {
	if why := s.missing(); why != "" {
		t.Skip(why)
	}
	m := s.start(t, "first", "-p", "0:7000", "-p", "0:7000/udp")
	t.Run("names", func(t *testing.T) { s.testNames(t, m) })
	t.Run("out", func(t *testing.T) { s.testOut(t, m) })
	t.Run("published", func(t *testing.T) { s.testPublished(t, m) })
	t.Run("small path", func(t *testing.T) { s.testSmallPath(t, m) })
	t.Run("at run time", func(t *testing.T) { s.testRuntime(t, m) })
	t.Run("two VMs", func(t *testing.T) { s.testTwo(t, m) })
	t.Run("again at once", s.testAgain)
	if s.egress {
		t.Run("egress", func(t *testing.T) { s.testEgress(t, m) })
	}
	if s.between {
		t.Run("bridge", func(t *testing.T) { s.testBridge(t, m) })
	}
}

func (s *suite) start(t testing.TB, name string, flags ...string) *machine {
	return s.account.start(t, s.image, s.backend, name, flags...)
}

// bulk is how much is sent each way, bytes.
func bulk(t testing.TB) int {
	t.Helper()
	text := os.Getenv("FCVM_TEST_BULK")
	if text == "" {
		return bulkSize
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("FCVM_TEST_BULK: %v", err)
	}
	return n
}

func (s *suite) atOnce() int {
	if s.oneByOne {
		return 1
	}
	return 8
}

func (s *suite) datagrams() []int { return []int{1, 1400, 1473, s.maxDatagram} }

// serveNeighbour is a server in the neighbour's namespace.
func (s *suite) serveNeighbour(t testing.TB) string {
	t.Helper()
	l := s.neighbour.Listen(t, "tcp4", nettest.NeighbourAddr+":0")
	go netpeer.Serve(l, "neighbour")
	return l.Addr().String()
}

// dialFrom connects from the neighbour.
func (s *suite) dialFrom(network, addr string) netpeer.Dial {
	return func() (net.Conn, error) { return s.neighbour.Dial(network, addr) }
}

func (s *suite) testNames(t *testing.T, m *machine) {
	for name, want := range map[string]string{
		nettest.OutsideName:        nettest.NeighbourAddr,
		"host.containers.internal": network.Gateway,
	} {
		if out := m.run(t, "exec", m.name, "/program", "lookup", name); !strings.Contains(" "+out+" ", " "+want+" ") {
			t.Errorf("%s is %q in the guest, want %s", name, out, want)
		}
	}
	if out, err := m.try(t, "exec", m.name, "/program", "lookup", "absent.test."); err == nil {
		t.Errorf("a name that nobody has is %q in the guest", out)
	}
}

func (s *suite) testOut(t *testing.T, m *machine) {
	addr := s.serveNeighbour(t)
	timed(t, "bulk", func() { m.call(t, "bulk", addr, bulk(t)) })
	timed(t, "short", func() { m.call(t, "short", addr, conns, s.atOnce()) })
	m.call(t, "halfclose", addr)
	pc := s.neighbour.ListenPacket(t, "udp4", nettest.NeighbourAddr+":0")
	go netpeer.ServePackets(pc)
	m.call(t, "udp", pc.LocalAddr().String(), s.datagrams()...)

	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go netpeer.Serve(l, "host")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if got := m.call(t, "name", "host.containers.internal:"+port); got != "host" {
		t.Errorf("host.containers.internal is served by %q", got)
	}
}

func timed(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	t.Logf("%s: %s", what, time.Since(start).Round(time.Millisecond))
}

func (s *suite) testPublished(t *testing.T, m *machine) {
	tcp, udp := m.port(t, peerPort+"/tcp"), m.port(t, peerPort+"/udp")
	for _, from := range []struct {
		name string
		addr string
		dial func(network, addr string) netpeer.Dial
	}{
		{"localhost", "127.0.0.1", dialHost},
		{"the neighbour", nettest.HostAddr, s.dialFrom},
	} {
		t.Run("from "+from.name, func(t *testing.T) {
			dial := from.dial("tcp4", net.JoinHostPort(from.addr, tcp))
			check := func(what string, f func() error) {
				t.Helper()
				timed(t, what, func() {
					if err := f(); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			check("bulk", func() error { return dial.Bulk(int64(bulk(t))) })
			check("short", func() error { return dial.Short(conns, s.atOnce()) })
			check("half-close", dial.HalfClose)
			check("udp", func() error {
				return from.dial("udp4", net.JoinHostPort(from.addr, udp)).Datagrams(s.datagrams()...)
			})
		})
	}
}

// testSmallPath sends over a path whose packets are smaller than the guest's.
func (s *suite) testSmallPath(t *testing.T, m *machine) {
	nettest.SetPathMTU(t, nettest.NeighbourAddr, pathMTU)
	m.call(t, "bulk", s.serveNeighbour(t), bulk(t)/10)
	published := s.dialFrom("tcp4", net.JoinHostPort(nettest.HostAddr, m.port(t, peerPort+"/tcp")))
	if err := published.Bulk(int64(bulk(t) / 10)); err != nil {
		t.Errorf("by a published port: %v", err)
	}
}

// testRuntime opens and closes a port while the VM runs.
func (s *suite) testRuntime(t *testing.T, m *machine) {
	spec := "0:" + peerPort
	for range 2 { // a free port, and then the same again
		opened := m.run(t, "publish", m.name, "-p", spec)
		_, port, err := net.SplitHostPort(strings.TrimPrefix(opened, peerPort+"/tcp -> "))
		if err != nil {
			t.Fatalf("fcvm publish says %q", opened)
		}
		spec = port + ":" + peerPort
		var held []net.Conn
		for from, dial := range map[string]netpeer.Dial{
			"localhost": dialHost("tcp4", "127.0.0.1:"+port), "the neighbour": s.dialFrom("tcp4", nettest.HostAddr+":"+port),
		} {
			c, err := dial.Hold()
			if err != nil {
				t.Fatalf("from %s: %v", from, err)
			}
			held = append(held, c)
		}
		m.run(t, "publish", m.name, "--rm", "-p", spec)
		for from, dial := range map[string]netpeer.Dial{
			"localhost": dialHost("tcp4", "127.0.0.1:"+port), "the neighbour": s.dialFrom("tcp4", nettest.HostAddr+":"+port),
		} {
			if name, err := dial.Name(); err == nil {
				t.Errorf("from %s: a port that was closed is served by %q", from, name)
			}
		}
		for _, c := range held { // what was made before goes on
			if err := netpeer.StillThere(c); err != nil {
				t.Errorf("a connection over a port that was closed since: %v", err)
			}
			_ = c.Close()
		}
	}
}

// testTwo runs a second VM, whose guest has the same address, beside the first.
func (s *suite) testTwo(t *testing.T, first *machine) {
	second := s.start(t, "second", "-p", "0:7000")
	addr := s.serveNeighbour(t)
	var work sync.WaitGroup
	for _, m := range []*machine{first, second} {
		port := m.port(t, peerPort+"/tcp")
		work.Go(func() {
			if out, err := m.tryCall(t, "bulk", addr, bulk(t)/10); err != nil {
				t.Errorf("out of %s: %s, %v", m.name, out, err)
			}
		})
		work.Go(func() {
			for range connsSmall {
				for _, dial := range []netpeer.Dial{dialHost("tcp4", "127.0.0.1:"+port), s.dialFrom("tcp4", nettest.HostAddr+":"+port)} {
					if name, err := dial.Name(); err != nil || name != m.name {
						t.Errorf("the port of %s is served by %q, %v", m.name, name, err)
					}
				}
			}
		})
	}
	work.Wait()
	if !s.between {
		return
	}
	// Through the host's own address each VM reaches what it publishes itself,
	// and what the other one does.
	for _, from := range []*machine{first, second} {
		for _, to := range []*machine{first, second} {
			addr := net.JoinHostPort(nettest.HostAddr, to.port(t, peerPort+"/tcp"))
			if got := from.call(t, "name", addr); got != to.name {
				t.Errorf("from %s, %s is served by %q, not %s", from.name, addr, got, to.name)
			}
		}
		from.call(t, "bulk", net.JoinHostPort(nettest.HostAddr, first.port(t, peerPort+"/tcp")), bulk(t)/20)
	}
	if got := first.call(t, "name", "second:"+peerPort); got != "second" {
		t.Errorf("the name second is served by %q", got)
	}
}

// testAgain starts a VM on the port of one that has just been killed, with
// connections open.
func (s *suite) testAgain(t *testing.T) {
	spec := "0:" + peerPort
	for i := range 2 {
		name := fmt.Sprint("again", i)
		m := s.start(t, name, "-p", spec)
		port := m.port(t, peerPort+"/tcp")
		spec = port + ":" + peerPort
		for _, dial := range []netpeer.Dial{dialHost("tcp4", "127.0.0.1:"+port), s.dialFrom("tcp4", nettest.HostAddr+":"+port)} {
			if got, err := dial.Name(); err != nil || got != name {
				t.Errorf("the port of %s is served by %q, %v", name, got, err)
			}
			c, err := dial.Hold()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
		}
		m.run(t, "kill", name)
		m.run(t, "rm", "-f", name)
	}
}
