package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outside are addresses that are taken for another machine's.
var outside = []string{"10.9.0.1", "fd09::1"}

// link is a connection, and the error that ends a read at one of its ends.
type link struct {
	near, far net.Conn
	ended     chan error
}

func (l *link) read() {
	_, err := l.near.Read(make([]byte, 1))
	l.ended <- err
}

func connect(t *testing.T, l net.Listener) *link {
	t.Helper()
	near, err := net.Dial("tcp", l.Addr().String())
	// The kernel adds the route to an IPv6 address some time after the address.
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.ENETUNREACH) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		near, err = net.Dial("tcp", l.Addr().String())
	}
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	c := &link{near: near, far: far, ended: make(chan error, 1)}
	return c
}

func listen(t *testing.T, host string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestResetTCP(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.9.0.1/32", "fd09::1/128", "10.8.0.1/32"} {
		if err := configureAddress(lo, a, ""); err != nil {
			t.Fatal(err)
		}
	}
	local := map[netip.Addr]bool{netip.MustParseAddr("10.8.0.1"): true}

	var stay, leave []*link
	var listeners []net.Listener
	for _, host := range []string{"127.0.0.1", "::1", "10.8.0.1"} {
		l := listen(t, host)
		listeners = append(listeners, l)
		stay = append(stay, connect(t, l))
	}
	for _, host := range outside {
		l := listen(t, host)
		listeners = append(listeners, l)
		leave = append(leave, connect(t, l))
	}
	// A socket for both families has IPv4 addresses in IPv6's clothes.
	both := listen(t, "::")
	listeners = append(listeners, both)
	port := both.Addr().(*net.TCPAddr).Port
	mapped, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.ParseIP(outside[0]), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	far, err := both.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mapped.Close(); _ = far.Close() })
	leave = append(leave, &link{near: far, far: mapped, ended: make(chan error, 1)})
	for _, l := range append(stay[:len(stay):len(stay)], leave...) {
		go l.read()
	}
	time.Sleep(50 * time.Millisecond) // so that they wait in the kernel

	n, err := resetTCP(local)
	// Both ends are here: the one may have heard of it before its turn came.
	if err != nil || n < len(leave) || n > 2*len(leave) {
		t.Errorf("%d were reset, %v; want at least %d", n, err, len(leave))
	}
	for _, l := range leave {
		select {
		case err := <-l.ended:
			if !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("a read from %s ends with %v", l.near.RemoteAddr(), err)
			}
		case <-time.After(time.Second):
			t.Errorf("a read from %s goes on", l.near.RemoteAddr())
		}
		if _, err := l.near.Write([]byte("x")); err == nil {
			t.Errorf("a write to %s goes on", l.near.RemoteAddr())
		}
	}
	for _, l := range stay {
		if _, err := l.far.Write([]byte("x")); err != nil {
			t.Errorf("a connection to %s: %v", l.near.RemoteAddr(), err)
		}
		if err := <-l.ended; err != nil {
			t.Errorf("a connection to %s: %v", l.near.RemoteAddr(), err)
		}
	}
	for _, l := range listeners {
		connect(t, l)
	}
}

// Connections that are being made, or are half closed.
func TestResetTCPInOtherStates(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	newLink(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := configureAddress(lo, "10.9.0.1/32", ""); err != nil {
		t.Fatal(err)
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := configureAddress(eth0, "10.0.2.15/24", ""); err != nil {
		t.Fatal(err)
	}
	// Somebody who never answers: a hardware address that nobody has.
	mute := net.ParseIP("10.0.2.9")
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: eth0.Attrs().Index, IP: mute, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT,
	})
	if err != nil {
		t.Fatal(err)
	}
	dialed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var d net.Dialer
		_, err := d.DialContext(ctx, "tcp", net.JoinHostPort(mute.String(), "80"))
		dialed <- err
	}()
	half := connect(t, listen(t, outside[0])) // CLOSE_WAIT and FIN_WAIT2
	if err := half.far.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := half.near.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	orphan := connect(t, listen(t, outside[0])) // FIN_WAIT2, and nobody's
	if err := orphan.near.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection that is being made", func() bool {
		found, err := listTCP(unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			if s.State == tcpSynSent {
				return true
			}
		}
		return false
	})
	n, err := resetTCP(nil)
	// One that is made, one or two ends of a half closed one, one of the orphan's.
	if err != nil || n < 3 || n > 4 {
		t.Errorf("%d were reset, %v", n, err)
	}
	if err := <-dialed; !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the connection that was being made: %v", err)
	}
	if _, err := half.near.Write([]byte("x")); err == nil {
		t.Error("a write to a half closed connection goes on")
	}
}
