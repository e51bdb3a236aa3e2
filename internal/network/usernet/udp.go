package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/fcvm/fcvm/internal/network"
)

// maxDatagram is the largest payload of UDP over IPv4.
const maxDatagram = 65507

// forwardUDP is called with the first packet from a port of the guest to an
// address; it returns with an endpoint made, which takes the ones after it.
func (n *netstack) forwardUDP(r *udp.ForwarderRequest) {
	id := r.ID()
	dst, ok := destination(netAddr(id.LocalAddress))
	if !ok || !acquire(n.udpSlots) {
		return
	}
	host, err := n.dialer.DialContext(n.ctx, "udp4", netip.AddrPortFrom(dst, id.LocalPort).String())
	if err != nil {
		release(n.udpSlots)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		_ = host.Close()
		release(n.udpSlots)
		return
	}
	n.tasks.Go(func() {
		defer release(n.udpSlots)
		idle := udpIdle
		if id.LocalPort == dnsPort {
			idle = udpIdleDNS
		}
		relayUDP(n.ctx, gonet.NewUDPConn(&wq, ep), host, idle)
	})
}

// relayUDP passes datagrams both ways between two connected sockets, until
// none has come for as long as idle, and closes both.
func relayUDP(ctx context.Context, a, b net.Conn, idle time.Duration) {
	closeBoth := func() { _ = a.Close(); _ = b.Close() }
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	defer closeBoth()
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	var back sync.WaitGroup
	back.Go(func() { defer closeBoth(); passDatagrams(a, b, &last, idle) })
	passDatagrams(b, a, &last, idle)
	closeBoth()
	back.Wait()
}

// passDatagrams returns when src is closed, or when last, which others may
// set as well, is idle ago.
func passDatagrams(dst io.Writer, src net.Conn, last *atomic.Int64, idle time.Duration) {
	buf := make([]byte, maxDatagram)
	for {
		_ = src.SetReadDeadline(time.Unix(0, last.Load()).Add(idle))
		size, err := src.Read(buf)
		switch {
		case err == nil:
			last.Store(time.Now().UnixNano())
			_, _ = dst.Write(buf[:size]) // a datagram may get lost
		case isTimeout(err):
			if time.Since(time.Unix(0, last.Load())) >= idle {
				return
			}
		case !isRefusal(err):
			return
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// isRefusal recognizes the echo of a datagram that nobody received: the next
// one may be.
func isRefusal(err error) bool {
	var op *net.OpError
	return errors.Is(err, syscall.ECONNREFUSED) ||
		errors.As(err, &op) && op.Err != nil && op.Err.Error() == (&tcpip.ErrConnectionRefused{}).String()
}

// udpService is one published UDP port: each client has a socket of its own
// towards the guest, so that answers find back to it.
type udpService struct {
	net   *netstack
	conn  *net.UDPConn
	guest tcpip.FullAddress

	mu      sync.Mutex
	clients map[netip.AddrPort]*udpClient
	tasks   sync.WaitGroup
}

type udpClient struct {
	service *udpService
	addr    netip.AddrPort
	guest   net.Conn
	last    atomic.Int64 // when a datagram came, either way
}

// Write sends the client a datagram.
func (c *udpClient) Write(b []byte) (int, error) { return c.service.conn.WriteToUDPAddrPort(b, c.addr) }

// publishUDP serves a published port until its socket is closed.
func (n *netstack) publishUDP(conn *net.UDPConn, port network.Port) {
	s := &udpService{
		net: n, conn: conn,
		guest:   tcpip.FullAddress{NIC: nic, Addr: stackAddr(guestPrefix.Addr()), Port: port.GuestPort},
		clients: make(map[netip.AddrPort]*udpClient),
	}
	defer s.tasks.Wait()
	buf := make([]byte, maxDatagram)
	for {
		size, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !sleep(n.ctx, 10*time.Millisecond) {
				return
			}
			continue
		}
		if c := s.client(from); c != nil {
			c.last.Store(time.Now().UnixNano())
			_, _ = c.guest.Write(buf[:size])
		}
	}
}

// client finds or makes the socket that stands for a client; nil when there
// are too many.
func (s *udpService) client(from netip.AddrPort) *udpClient {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.clients[from]; ok {
		return c
	}
	if !acquire(s.net.udpSlots) {
		return nil
	}
	local := tcpip.FullAddress{NIC: nic, Addr: stackAddr(gatewayAddr)}
	guest, err := gonet.DialUDP(s.net.stack, &local, &s.guest, ipv4.ProtocolNumber)
	if err != nil {
		release(s.net.udpSlots)
		return nil
	}
	c := &udpClient{service: s, addr: from, guest: guest}
	c.last.Store(time.Now().UnixNano())
	s.clients[from] = c
	s.tasks.Go(c.answer)
	return c
}

// answer passes what the guest sends back to the client, and forgets the
// client when it is idle.
func (c *udpClient) answer() {
	defer release(c.service.net.udpSlots)
	stop := context.AfterFunc(c.service.net.ctx, func() { _ = c.guest.Close() })
	defer stop()
	passDatagrams(c, c.guest, &c.last, udpIdle)
	c.service.mu.Lock()
	delete(c.service.clients, c.addr)
	c.service.mu.Unlock()
	_ = c.guest.Close()
}
