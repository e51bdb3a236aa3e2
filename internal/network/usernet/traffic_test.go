package usernet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm"
)

// patience is the limit on anything that the tests wait for.
const patience = time.Minute

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// guestPorts are what the suite publishes, on free ports of the host.
func guestPorts() []network.Port {
	list := []network.Port{{HostIP: loopback, GuestPort: 8080, Protocol: network.UDP}}
	for i := range uint16(5) {
		list = append(list, network.Port{HostIP: loopback, GuestPort: 8080 + i, Protocol: network.TCP})
	}
	return list
}

func TestTrafficOverSocket(t *testing.T) {
	a := attach(t, vmm.Capabilities{SockNetwork: true}, guestPorts()...)
	testTraffic(t, a, newStackGuest(t, a))
}

func TestTrafficOverSocketWithKernel(t *testing.T) {
	needNamespaces(t)
	a := attach(t, vmm.Capabilities{SockNetwork: true}, guestPorts()...)
	testTraffic(t, a, newKernelGuest(t, a))
}

func TestTrafficOverTap(t *testing.T) {
	needNamespaces(t)
	a := attach(t, vmm.Capabilities{TapNetwork: true}, guestPorts()...)
	testTraffic(t, a, newKernelGuest(t, a))
}

// testTraffic is what every way to attach a guest passes. The attachment
// publishes guestPorts.
func testTraffic(t *testing.T, a network.Attachment, g guest) {
	for _, p := range a.Ports() {
		if p.HostPort == 0 {
			t.Fatalf("port %s has no host port", p)
		}
	}
	udpPort, tcpPorts := a.Ports()[0], a.Ports()[1:]
	fromGuest := func(t *testing.T) (dial func() (net.Conn, error), l net.Listener) {
		l = listenHost(t)
		return func() (net.Conn, error) { return g.dial(t, "tcp", atGateway(t, l.Addr())) }, l
	}
	toGuest := func(t *testing.T) (dial func() (net.Conn, error), l net.Listener) {
		p := tcpPorts[0] // each test has its own: one may leave connections behind
		tcpPorts = tcpPorts[1:]
		l = g.listen(t, p.GuestPort)
		t.Cleanup(func() { _ = l.Close() })
		return func() (net.Conn, error) { return net.DialTimeout("tcp", p.HostAddr().String(), patience) }, l
	}
	for name, ends := range map[string]func(t *testing.T) (func() (net.Conn, error), net.Listener){
		"out": fromGuest, "published": toGuest,
	} {
		t.Run(name+"/bulk", func(t *testing.T) { dial, l := ends(t); testBulk(t, dial, l) })
		t.Run(name+"/half-close", func(t *testing.T) { dial, l := ends(t); testHalfClose(t, dial, l) })
		t.Run(name+"/short", func(t *testing.T) { dial, l := ends(t); testShort(t, dial, l) })
		t.Run(name+"/reset", func(t *testing.T) { dial, l := ends(t); testReset(t, dial, l) })
	}
	t.Run("out/refused", func(t *testing.T) {
		l := listenHost(t)
		_ = l.Close()
		if c, err := g.dial(t, "tcp", atGateway(t, l.Addr())); err == nil {
			t.Errorf("connected to a port where nobody listens: %v", c.RemoteAddr())
		}
	})
	t.Run("published/refused", func(t *testing.T) {
		c, err := net.DialTimeout("tcp", tcpPorts[0].HostAddr().String(), patience)
		if errors.Is(err, syscall.ECONNRESET) {
			return // so soon that the connection was never seen
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("read %d bytes, %v from a port where no guest listens", n, err)
		}
	})
	t.Run("out/udp", func(t *testing.T) {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		testUDP(t, pc, func() (net.Conn, error) { return g.dial(t, "udp", atGateway(t, pc.LocalAddr())) })
	})
	t.Run("published/udp", func(t *testing.T) {
		testUDP(t, g.listenPacket(t, 8080), func() (net.Conn, error) { return net.Dial("udp", udpPort.HostAddr().String()) })
	})
	t.Run("dns", func(t *testing.T) { testDNS(t, g) })
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

// connect makes both ends of one connection.
func connect(t testing.TB, dial func() (net.Conn, error), l net.Listener) (client, server net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	client, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	if server == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	deadline := time.Now().Add(patience)
	_, _ = client.SetDeadline(deadline), server.SetDeadline(deadline)
	return client, server
}

// testBulk sends 20 MB each way at once, and compares checksums.
func testBulk(t *testing.T, dial func() (net.Conn, error), l net.Listener) {
	client, server := connect(t, dial, l)
	const size = 20 << 20
	start := time.Now()
	var work sync.WaitGroup
	for i, way := range [][2]net.Conn{{client, server}, {server, client}} {
		sum := make(chan [32]byte, 1)
		work.Go(func() {
			h := sha256.New()
			src := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
			if _, err := io.Copy(io.MultiWriter(struct{ io.Writer }{way[0]}, h), src); err != nil {
				t.Errorf("send: %v", err)
			}
			sum <- [32]byte(h.Sum(nil))
			closeWrite(t, way[0])
		})
		work.Go(func() {
			h := sha256.New()
			n, err := io.Copy(h, struct{ io.Reader }{way[1]})
			if want := <-sum; err != nil || n != size || [32]byte(h.Sum(nil)) != want {
				t.Errorf("received %d of %d bytes, %v, same checksum: %t", n, size, err, [32]byte(h.Sum(nil)) == want)
			}
		})
	}
	work.Wait()
	t.Logf("20 MiB each way in %v", time.Since(start).Round(time.Millisecond))
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Errorf("close the sending half: %v", err)
	}
}

// testHalfClose answers only when the question has ended.
func testHalfClose(t *testing.T, dial func() (net.Conn, error), l net.Listener) {
	client, server := connect(t, dial, l)
	go func() {
		b, err := io.ReadAll(server)
		if err != nil {
			t.Error(err)
		}
		if _, err := server.Write(bytes.ToUpper(b)); err != nil {
			t.Error(err)
		}
		_ = server.Close()
	}()
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, client)
	if b, err := io.ReadAll(client); err != nil || string(b) != "QUESTION" {
		t.Errorf("got %q, %v", b, err)
	}
}

// testShort makes many short connections, some at a time.
func testShort(t *testing.T, dial func() (net.Conn, error), l net.Listener) {
	const conns, atOnce = 400, 8
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, struct{ io.Reader }{c}); _ = c.Close() }()
		}
	}()
	var work sync.WaitGroup
	for worker := range atOnce {
		work.Go(func() {
			for i := range conns / atOnce {
				if err := echoOnce(dial, fmt.Sprintf("%d/%d", worker, i)); err != nil {
					t.Errorf("connection %d of worker %d: %v", i, worker, err)
					return
				}
			}
		})
	}
	work.Wait()
}

func echoOnce(dial func() (net.Conn, error), text string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("got %q, want %q", b, text)
	}
	return nil
}

// testReset closes a connection whose received data was not read: the kernel
// resets it, and that must not look like an orderly end.
func testReset(t *testing.T, dial func() (net.Conn, error), l net.Listener) {
	client, server := connect(t, dial, l)
	if _, err := client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || isTimeout(err) {
		t.Errorf("read from a connection that was reset: %v", err)
	}
}

// testUDP exchanges datagrams of many sizes with an echo on pc.
func testUDP(t *testing.T, pc net.PacketConn, dial func() (net.Conn, error)) {
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	for range 2 { // the second client is another one
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, 1400, 1472, 9000, 65000, maxDatagram} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			if err := exchange(c, want); err != nil {
				t.Errorf("datagram of %d bytes: %v", size, err)
			}
		}
		_ = c.Close()
	}
}

// exchange sends a datagram until it comes back, for datagrams may get lost.
func exchange(c net.Conn, want []byte) error {
	buf := make([]byte, 1<<16)
	var err error
	for range 5 {
		if _, err = c.Write(want); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		var n int
		if n, err = c.Read(buf); err == nil {
			if !bytes.Equal(buf[:n], want) {
				return fmt.Errorf("%d bytes came back, not the same", n)
			}
			return nil
		}
	}
	return err
}

func testDNS(t *testing.T, g guest) {
	for _, protocol := range []string{network.UDP, network.TCP} {
		for _, q := range []struct {
			name  string
			typ   dnsmessage.Type
			rcode dnsmessage.RCode
			want  string
		}{
			{"host.containers.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, network.Gateway},
			{"Host.Docker.Internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, network.Gateway},
			{"localhost.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "127.0.0.1"},
			{"localhost.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, ""},
		} {
			t.Run(fmt.Sprintf("%s/%s/%s", protocol, q.name, q.typ), func(t *testing.T) {
				m := askGuest(t, g, protocol, q.name, q.typ)
				got := ""
				for _, a := range m.Answers {
					if r, ok := a.Body.(*dnsmessage.AResource); ok {
						got = netip.AddrFrom4(r.A).String()
					}
				}
				if m.RCode != q.rcode || got != q.want || !m.Response {
					t.Errorf("got %s %q, want %s %q", m.RCode, got, q.rcode, q.want)
				}
			})
		}
	}
}

// askGuest asks the link's DNS server from the guest.
func askGuest(t *testing.T, g guest, protocol, name string, typ dnsmessage.Type) dnsmessage.Message {
	t.Helper()
	c, err := g.dial(t, protocol, net.JoinHostPort(network.DNS, "53"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	q := query(t, name, typ)
	var b []byte
	if protocol == network.TCP {
		if err := writeDNS(c, q); err != nil {
			t.Fatal(err)
		}
		b, err = readDNS(c)
	} else {
		if _, err := c.Write(q); err != nil {
			t.Fatal(err)
		}
		b = make([]byte, dnsMaxSize)
		var n int
		n, err = c.Read(b)
		b = b[:n]
	}
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func query(t *testing.T, name string, typ dnsmessage.Type) []byte {
	t.Helper()
	b, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
