// Package serialmux carries the agent channel over a virtio-serial port,
// which is one pair of byte streams, as any number of connections
// (github.com/hashicorp/yamux). The host opens connections, the guest accepts
// them; a stream that the guest opens is never accepted.
//
// The two ends do not share a life: a host that goes away (a supervisor that
// ended, a snapshot that was restored elsewhere) shows in the guest as a
// hung-up port. Its Listener then drops the session, opens the port again and
// waits for the next host.
//
// A guest that stops reading, or never answers, holds nobody on the host: Dial
// ends with its context, and Close ends every Read and Write at once.
package serialmux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// openTimeout bounds how long a peer may take to acknowledge a stream before
// yamux gives up the session. A paused VM answers nothing, so it is long.
const openTimeout = 24 * time.Hour

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	// A VM may be paused for as long as its owner likes.
	c.EnableKeepAlive = false
	c.StreamOpenTimeout = openTimeout
	c.StreamCloseTimeout = openTimeout
	c.ConnectionWriteTimeout = openTimeout
	c.MaxStreamWindowSize = 1 << 20
	c.LogOutput = io.Discard // every error reaches the caller by the failing call
	return c
}

// Host is the host's end.
type Host struct {
	session *yamux.Session
	guest   *guard
}

// NewHost starts a session on conn, the character device's socket. It owns conn.
func NewHost(conn io.ReadWriteCloser) (*Host, error) {
	g := &guard{ReadWriteCloser: conn}
	s, err := yamux.Client(g, config())
	if err != nil {
		return nil, fmt.Errorf("start agent channel: %w", err)
	}
	return &Host{session: s, guest: g}, nil
}

// Dial opens a connection. The guest need not have accepted it yet: it shows
// by the first answer.
func (h *Host) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type stream struct {
		s   *yamux.Stream
		err error
	}
	opened := make(chan stream)
	go func() {
		s, err := h.session.OpenStream() // waits while the port takes nothing
		select {
		case opened <- stream{s, err}:
		case <-ctx.Done():
			if err == nil {
				_ = s.Close()
			}
		}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("open connection to the agent: %w", context.Cause(ctx))
	case o := <-opened:
		if o.err != nil {
			return nil, fmt.Errorf("open connection to the agent: %w", o.err)
		}
		return newConn(o.s), nil
	}
}

// Times between two greetings.
const (
	firstGreeting = 10 * time.Millisecond
	lastGreeting  = time.Second
)

// Greet waits until the guest answers on a port that it may be about to close
// and open again, as after a restore. What is sent to the port in between is
// lost with the guest's old session, so the greeting is repeated.
func (h *Host) Greet(ctx context.Context) error {
	answered := make(chan error, 1)
	pause := firstGreeting
	for {
		go func() {
			_, err := h.session.Ping()
			select {
			case answered <- err:
			default:
			}
		}()
		select {
		case err := <-answered:
			if err != nil {
				return fmt.Errorf("wait for the agent's end of the channel: %w", err)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the agent's end of the channel: %w", context.Cause(ctx))
		case <-time.After(pause):
			pause = min(2*pause, lastGreeting)
		}
	}
}

// HungUp says that the guest has closed the port. If it has answered before,
// whoever did so is gone, and all connections with it: they end. While it boots
// it may open and close the port as it likes.
func (h *Host) HungUp() {
	if h.guest.answered.Load() {
		_ = h.session.Close()
	}
}

// Close ends the session and all its connections.
func (h *Host) Close() error { return h.session.Close() }

// reopenPause is how long the guest waits between looks at a port that no
// host has opened.
const reopenPause = 5 * time.Millisecond

// Listener is the guest's end: it accepts connections of whatever host is
// there.
type Listener struct {
	open   func() (io.ReadWriteCloser, error)
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	session *yamux.Session
}

// Listen accepts connections on the port that open opens; open is called
// again after each loss of the host.
func Listen(open func() (io.ReadWriteCloser, error)) *Listener {
	return &Listener{open: open, closed: make(chan struct{})}
}

// Accept waits for the next connection. It fails only when the listener is
// closed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		s, err := l.current()
		if err == nil {
			var c *yamux.Stream
			if c, err = s.AcceptStream(); err == nil {
				return newConn(c), nil
			}
			l.drop(s)
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		case <-time.After(reopenPause):
		}
	}
}

func (l *Listener) current() (*yamux.Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	if l.session != nil {
		return l.session, nil
	}
	port, err := l.open()
	if err != nil {
		return nil, err
	}
	s, err := yamux.Server(port, config())
	if err != nil {
		_ = port.Close()
		return nil, err
	}
	l.session = s
	return s, nil
}

func (l *Listener) drop(s *yamux.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == s {
		l.session = nil
	}
	_ = s.Close()
}

// Close ends the session and makes Accept return net.ErrClosed.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil {
		return l.session.Close()
	}
	return nil
}

// Addr is there for net.Listener.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "virtio-serial" }
func (addr) String() string  { return "agent" }
