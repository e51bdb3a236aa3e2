// Package dns is the name server that a guest sees: it answers by the host's
// means, knows the host and other VMs by name, and asks nobody for names that
// the guest's egress policy does not allow.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/network"
)

const (
	// Port is that of DNS.
	Port = 53

	timeout     = 4 * time.Second // a little less than resolvers wait (resolv.conf(5): 5 s)
	udpSize     = 512             // RFC 1035, 2.3.4; more with EDNS(0), RFC 6891
	maxSize     = 65535
	connTimeout = 10 * time.Second
	acceptPause = 50 * time.Millisecond
	maxAtOnce   = 64 // questions that wait for an answer

	// relearnPause is how often the names of the egress policy are looked up.
	relearnPause = 10 * time.Minute
)

// Config is what a server answers by.
type Config struct {
	// Servers are asked in place of the host's own.
	Servers []netip.Addr
	Egress  network.Egress
	// Host is what the host's names stand for.
	Host netip.Addr
	// IPv6: the guest's link carries it; without, no name has such an address.
	IPv6 bool
	// Names are other VMs; nil: none. A name comes in lower case, without a dot.
	Names func(name string) []netip.Addr
	// Learn is told what names that the policy allows stand for, before the
	// guest is; nil: nobody wants to know.
	Learn func([]netip.Addr)
}

// Server answers questions. It is safe for concurrent use.
type Server struct {
	Config
	lookup     func(ctx context.Context, family, name string) ([]netip.Addr, error)
	resolvConf string
	slots      chan struct{}
}

// New makes a server. It has no sockets of its own: see ServeUDP and ServeTCP.
func New(c Config) *Server {
	s := &Server{Config: c, resolvConf: "/etc/resolv.conf", slots: make(chan struct{}, maxAtOnce)}
	s.lookup = s.lookUp
	return s
}

// ServeUDP answers on a socket until ctx ends, and closes it.
func (s *Server) ServeUDP(ctx context.Context, conn net.PacketConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	buf := make([]byte, maxSize)
	for {
		size, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return
		}
		if err != nil || !s.acquire() {
			continue // the guest asks again
		}
		query := append([]byte(nil), buf[:size]...)
		tasks.Go(func() {
			defer s.release()
			if a := s.answer(ctx, network.UDP, query); a != nil {
				_, _ = conn.WriteTo(a, from)
			}
		})
	}
}

// ServeTCP answers on a listener's connections until ctx ends, and closes all.
func (s *Server) ServeTCP(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: there may be some again
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		tasks.Go(func() { s.ServeConn(ctx, c) })
	}
}

// ServeConn answers on one connection until ctx ends, and closes it. One too many is
// closed at once.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	if !s.acquire() {
		return
	}
	defer s.release()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	for ctx.Err() == nil {
		_ = c.SetDeadline(time.Now().Add(connTimeout))
		query, err := readMessage(c)
		if err != nil {
			return
		}
		a := s.answer(ctx, network.TCP, query)
		if a == nil || writeMessage(c, a) != nil {
			return
		}
	}
}

// Relearn looks up the names that the egress policy lists, at once and then from
// time to time, until ctx ends: a guest keeps addresses for longer than they are let
// through, and one that was restored has asked another server, or long ago.
func (s *Server) Relearn(ctx context.Context) {
	names := s.Egress.Names()
	if s.Learn == nil || len(names) == 0 {
		return
	}
	tick := time.NewTicker(relearnPause)
	defer tick.Stop()
	for {
		for _, name := range names {
			for _, v6 := range []bool{false, true} {
				one, cancel := context.WithTimeout(ctx, timeout)
				s.find(one, name, v6) // which tells Learn
				cancel()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) acquire() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) release() { <-s.slots }

// readMessage and writeMessage do a message's framing on TCP: RFC 1035, 4.2.2.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeMessage(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}
