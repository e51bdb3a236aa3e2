package hostport

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/network"
)

// echoGuest sends datagrams back.
type echoGuest struct {
	Guest
	addr string
}

func (g echoGuest) DialUDP(netip.Addr, uint16) (net.Conn, error) { return net.Dial("udp4", g.addr) }

func newEchoGuest(t *testing.T) echoGuest {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return echoGuest{addr: c.LocalAddr().String()}
}

// serveUDP publishes a UDP port until the test's end.
func serveUDP(t *testing.T, host netip.Addr, g Guest, l Limits) *Opened {
	t.Helper()
	list, err := Open(t.Context(), network.Port{HostIP: host, GuestPort: 7, Protocol: network.UDP})
	if err != nil {
		t.Skipf("no socket on %s here: %v", host, err)
	}
	o := list[0]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); o.Serve(ctx, g, l) }()
	t.Cleanup(func() { cancel(); _ = o.Close(); <-done })
	return o
}

// answers reports whether a datagram comes back.
func answers(c net.Conn) bool {
	_, _ = c.Write([]byte("x"))
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, err := c.Read(make([]byte, 10))
	return err == nil
}

// A port on all addresses answers from the one that was asked, also where the same
// client asks by several.
func TestUDPAnswersFromWhereItWasAsked(t *testing.T) {
	for _, tt := range []struct {
		all   netip.Addr
		asked []string
	}{
		{netip.IPv4Unspecified(), []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}},
		{netip.IPv6Unspecified(), []string{"::1"}},
	} {
		t.Run(tt.all.String(), func(t *testing.T) {
			o := serveUDP(t, tt.all, newEchoGuest(t), Limits{UDP: NewFlows(10)})
			client, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(tt.asked[0])})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			for _, asked := range tt.asked {
				to := netip.AddrPortFrom(netip.MustParseAddr(asked), o.Port().HostPort)
				c, err := net.Dial("udp", to.String()) // it takes answers from there only
				if err != nil {
					t.Fatal(err)
				}
				if !answers(c) {
					t.Errorf("%s does not answer", to)
				}
				_ = c.Close()
				if _, err := client.WriteToUDPAddrPort([]byte("x"), to); err != nil {
					t.Fatal(err)
				}
				_ = client.SetReadDeadline(time.Now().Add(2 * time.Second))
				if _, from, err := client.ReadFromUDPAddrPort(make([]byte, 10)); err != nil || from != to {
					t.Errorf("%s answers as %s, %v", to, from, err)
				}
			}
		})
	}
}

// With all places taken, a new client has that of the one that is idle for the
// longest.
func TestIdlestUDPClientMakesRoom(t *testing.T) {
	flows := NewFlows(2)
	o := serveUDP(t, netip.IPv4Unspecified(), newEchoGuest(t), Limits{UDP: flows})
	clients := make([]net.Conn, 3)
	for i := range clients {
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), o.Port().HostPort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		clients[i] = c
	}
	for _, i := range []int{0, 1, 0, 2, 0} { // 2 has the place of 1
		if !answers(clients[i]) {
			t.Fatalf("client %d is not answered", i)
		}
	}
	flows.mu.Lock()
	defer flows.mu.Unlock()
	if len(flows.open) != 2 {
		t.Errorf("%d clients count", len(flows.open))
	}
}
