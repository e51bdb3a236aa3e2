package hostport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of what a published port waits for, and how long it remembers.
const (
	guestDialTimeout = 10 * time.Second // for a guest that does not answer, for instance because it boots
	// UDPIdle is how long a client's association is kept without a datagram.
	UDPIdle = 90 * time.Second // RFC 4787, REQ-5, asks for two minutes of a router
)

// Guest connects to ports of the guest, for a client: as that, if it can.
type Guest interface {
	DialTCP(ctx context.Context, client netip.Addr, port uint16) (HalfConn, error)
	DialUDP(client netip.Addr, port uint16) (net.Conn, error)
}

// Limits bound what clients can make the process hold open.
type Limits struct {
	TCP chan struct{} // connections; its capacity is the number at a time
	UDP *Flows        // clients of UDP ports
}

// Serve passes what comes to the port on to the guest. It returns when the
// port is closed and its connections have ended; the end of ctx resets them.
func (o *Opened) Serve(ctx context.Context, g Guest, l Limits) {
	if o.tcp != nil {
		o.serveTCP(ctx, g, l.TCP)
		return
	}
	o.serveUDP(ctx, g, l.UDP)
}

func (o *Opened) serveTCP(ctx context.Context, g Guest, slots chan struct{}) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		c, err := o.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or the client has gone
			if !sleep(ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		host := HostConn{c}
		if !Acquire(slots) {
			host.Abort()
			continue
		}
		clients.Go(func() {
			defer Release(slots)
			dial, cancel := context.WithTimeout(ctx, guestDialTimeout)
			defer cancel()
			guest, err := g.DialTCP(dial, addrOf(c.RemoteAddr()), o.port.GuestPort)
			if err != nil {
				host.Abort()
				return
			}
			RelayTCP(ctx, guest, host)
		})
	}
}

// addrOf is a socket's address, without its port.
func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
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

// udpService is one published UDP port: each client has a socket of its own
// towards the guest, so that answers find back to it.
type udpService struct {
	ctx   context.Context // its end is the service's
	conn  *net.UDPConn
	dial  func(client netip.Addr) (net.Conn, error)
	flows *Flows

	mu      sync.Mutex
	clients map[udpPath]*udpClient
	tasks   sync.WaitGroup
}

// udpPath is a client, and the address of the host that it knows.
type udpPath struct {
	client netip.AddrPort
	local  netip.Addr
}

type udpClient struct {
	service *udpService
	path    udpPath
	control []byte // of datagrams to it: see localOf
	guest   net.Conn
	flow    *Flow
}

// Write sends the client a datagram.
func (c *udpClient) Write(b []byte) (int, error) {
	n, _, err := c.service.conn.WriteMsgUDPAddrPort(b, c.control, c.path.client)
	return n, err
}

func (o *Opened) serveUDP(ctx context.Context, g Guest, flows *Flows) {
	ctx, cancel := context.WithCancel(ctx)
	s := &udpService{
		ctx: ctx, conn: o.udp, flows: flows, clients: make(map[udpPath]*udpClient),
		dial: func(client netip.Addr) (net.Conn, error) { return g.DialUDP(client, o.port.GuestPort) },
	}
	defer s.tasks.Wait()
	defer cancel() // nobody can be answered any more
	buf, control := make([]byte, MaxDatagram), make([]byte, maxControl)
	for {
		size, controlSize, _, from, err := s.conn.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !sleep(ctx, 10*time.Millisecond) {
				return
			}
			continue
		}
		if c := s.client(from, control[:controlSize]); c != nil {
			c.flow.touch()
			_, _ = c.guest.Write(buf[:size])
		}
	}
}

// client finds or makes the socket that stands for a client; nil when there can be
// none.
func (s *udpService) client(from netip.AddrPort, control []byte) *udpClient {
	local, control := localOf(control)
	path := udpPath{from, local}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.clients[path]; ok {
		return c
	}
	guest, err := s.dial(from.Addr().Unmap())
	if err != nil {
		return nil
	}
	c := &udpClient{service: s, path: path, control: control, guest: guest}
	c.flow = s.flows.Begin(func() { _ = guest.Close() })
	s.clients[path] = c
	s.tasks.Go(c.answer)
	return c
}

// answer passes what the guest sends back to the client, and forgets the
// client when it is idle.
func (c *udpClient) answer() {
	defer c.flow.Done()
	stop := context.AfterFunc(c.service.ctx, func() { _ = c.guest.Close() })
	defer stop()
	passDatagrams(c, c.guest, c.flow, UDPIdle)
	c.service.mu.Lock()
	delete(c.service.clients, c.path)
	c.service.mu.Unlock()
	_ = c.guest.Close()
}
