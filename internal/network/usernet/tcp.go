package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/fcvm/fcvm/internal/network"
)

// guestConn is the stack's end of a TCP connection with the guest.
type guestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// abort closes the connection with a reset.
func (c guestConn) abort() {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	_ = c.Close()
}

// hostConn is the other end, a socket of the host.
type hostConn struct{ *net.TCPConn }

func (c hostConn) abort() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// halfConn is what relayTCP needs of either end.
type halfConn interface {
	net.Conn
	CloseWrite() error
	abort()
}

// destination is where a connection to addr really goes: the gateway stands
// for the host's loopback; and what no packet on a wire may be sent to, what
// belongs to this link, or what is this host's alone, goes nowhere. The
// latter includes link-local addresses, where clouds keep the host's own
// credentials.
func destination(addr netip.Addr) (netip.Addr, bool) {
	switch {
	case addr == gatewayAddr:
		return hostAddr, true
	case guestPrefix.Contains(addr), addr.IsLoopback(), addr.IsLinkLocalUnicast(), addr.IsMulticast(), addr.IsUnspecified(),
		addr.As4()[0] == 0, addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, false
	}
	return addr, true
}

// forwardTCP connects the guest to where it wants to. The guest's SYN is
// answered once the other side has answered, so that a refusal is a refusal.
func (n *netstack) forwardTCP(r *tcp.ForwarderRequest) {
	if !n.enter() {
		r.Complete(false)
		return
	}
	defer n.tasks.Done()
	id := r.ID()
	dst, ok := destination(netAddr(id.LocalAddress))
	if !ok || !acquire(n.tcpSlots) {
		r.Complete(true)
		return
	}
	defer release(n.tcpSlots)
	out, err := n.dialer.DialContext(n.ctx, "tcp4", netip.AddrPortFrom(dst, id.LocalPort).String())
	if err != nil {
		r.Complete(true) // refused; also where the other side was silent for too long
		return
	}
	host := hostConn{out.(*net.TCPConn)}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil {
		host.abort()
		return
	}
	relayTCP(n.ctx, guestConn{gonet.NewTCPConn(&wq, ep), ep}, host)
}

// dialGuest connects to a port of the guest.
func (n *netstack) dialGuest(ctx context.Context, port uint16) (guestConn, error) {
	var wq waiter.Queue
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return guestConn{}, stackError(terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Bind(tcpip.FullAddress{NIC: nic, Addr: stackAddr(gatewayAddr)})
	if terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: stackAddr(guestPrefix.Addr()), Port: port})
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Close()
			return guestConn{}, ctx.Err()
		case <-ready:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		ep.Close()
		return guestConn{}, fmt.Errorf("connect to the guest's port %d: %w", port, stackError(terr))
	}
	return guestConn{gonet.NewTCPConn(&wq, ep), ep}, nil
}

// copyBuffers are shared by all connections of the process.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// relayTCP copies both ways until both ends have said all, or one fails. The
// end of one direction is passed on as such; a failure, as a reset.
func relayTCP(ctx context.Context, a, b halfConn) {
	stop := context.AfterFunc(ctx, func() { a.abort(); b.abort() })
	defer stop()
	back := make(chan error, 1)
	go func() { back <- copyHalf(a, b) }()
	err := copyHalf(b, a)
	if err := errors.Join(err, <-back); err != nil {
		return // both are aborted
	}
	_ = a.Close()
	_ = b.Close()
}

// copyHalf copies from src to dst. When that fails, both are done for.
func copyHalf(dst, src halfConn) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	// Hidden behind plain interfaces: *net.TCPConn's own ReadFrom would take
	// a smaller buffer.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.abort()
		src.abort()
	}
	return err
}

// acquire takes one of a number of slots, if one is free.
func acquire(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func release(slots chan struct{}) { <-slots }

// guestDialTimeout bounds how long a client of a published port waits for a
// guest that does not answer, for instance because it boots.
const guestDialTimeout = 10 * time.Second

// publishTCP serves a published port until its listener is closed.
func (n *netstack) publishTCP(l *net.TCPListener, port network.Port) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or the client has gone
			if !sleep(n.ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		host := hostConn{c}
		if !acquire(n.tcpSlots) {
			host.abort()
			continue
		}
		clients.Go(func() {
			defer release(n.tcpSlots)
			ctx, cancel := context.WithTimeout(n.ctx, guestDialTimeout)
			defer cancel()
			guest, err := n.dialGuest(ctx, port.GuestPort)
			if err != nil {
				host.abort()
				return
			}
			relayTCP(n.ctx, guest, host)
		})
	}
}

// sleep waits for d; false: ctx has ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
