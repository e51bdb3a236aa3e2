package usernet

import (
	"io"
	"net"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/fcvm/fcvm/internal/network/hostport"
	"github.com/fcvm/fcvm/internal/network/nettest"
)

// What a guest's connections can have the host keep does not grow with their number
// as the first ones let it.
func TestBuffersAreBounded(t *testing.T) {
	n := attach(t, socketVMM).(*attachment).net
	for _, tt := range []struct{ open, buffer, copied int }{
		{1, fastBuffer, hostport.MaxCopyBuffer},
		{maxFast, fastBuffer, hostport.MaxCopyBuffer},
		{maxFast + 1, slowBuffer, slowCopy},
		{maxTCP, slowBuffer, slowCopy},
	} {
		for len(n.limits.TCP) < tt.open {
			hostport.Acquire(n.limits.TCP)
		}
		var wq waiter.Queue
		ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
		if err != nil {
			t.Fatal(err)
		}
		c := n.newGuestConn(&wq, ep)
		send, receive := ep.SocketOptions().GetSendBufferSize(), ep.SocketOptions().GetReceiveBufferSize()
		if send != int64(tt.buffer) || receive != int64(tt.buffer) || c.CopyBuffer() != tt.copied {
			t.Errorf("connection %d has buffers of %d, %d and %d bytes", tt.open, send, receive, c.CopyBuffer())
		}
		_ = c.Close()
	}
}

// A connection that is over counts for as long as the guest has not taken what was
// sent: else it could have any number of them.
func TestUnreadConnectionsCount(t *testing.T) {
	a := attach(t, socketVMM, guestPorts()...)
	open := a.(*attachment).net.limits.TCP
	l := newStackGuest(t, a).listen(t, 8080)
	defer func() { _ = l.Close() }()
	client, guest := nettest.Way{Listener: l, Dial: func() (net.Conn, error) { return net.Dial("tcp", a.Ports()[1].HostAddr().String()) }}.Connect(t)
	// The guest takes half of its stack's buffer of 1 MiB, this side's keeps the rest.
	const size = 1200 << 10
	if err := guest.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	time.Sleep(500 * time.Millisecond)
	if len(open) != 1 {
		t.Errorf("%d connections count while the guest does not read", len(open))
	}
	if b, err := io.ReadAll(guest); err != nil || len(b) != size {
		t.Errorf("the guest has read %d of %d bytes, %v", len(b), size, err)
	}
	for end := time.Now().Add(patience); len(open) != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the connection counts for ever")
		}
	}
}
