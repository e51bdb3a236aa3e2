package serialmux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// port is a virtio-serial port without a machine: a socket pair for each host
// that opens it.
type port struct{ guest chan net.Conn }

func newPort() *port { return &port{guest: make(chan net.Conn, 1)} }

func (p *port) open() (io.ReadWriteCloser, error) {
	select {
	case c := <-p.guest:
		return c, nil
	default:
		return nil, os.ErrNotExist // no host yet
	}
}

// plug is what QEMU does for a host that connects to the port.
func (p *port) plug(t *testing.T) net.Conn {
	t.Helper()
	host, guest := socketpair(t)
	p.guest <- guest
	return host
}

func socketpair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		conns[i] = c
	}
	return conns[0], conns[1]
}

func newHost(t *testing.T, conn io.ReadWriteCloser) *Host {
	t.Helper()
	h, err := NewHost(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func dial(t *testing.T, h *Host) net.Conn {
	t.Helper()
	c, err := h.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echo answers every connection with what it sends.
func echo(t *testing.T, l *Listener) {
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
}

// roundTrip sends size random bytes and wants them back.
func roundTrip(c net.Conn, size int) error {
	want := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = src.Read(want)
	sent := make(chan error, 1)
	go func() { _, err := c.Write(want); sent <- err }()
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if !bytes.Equal(got, want) {
		return errors.New("the bytes that came back are others")
	}
	return nil
}

// within fails the test when f takes longer than anybody would wait.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s takes more than %s", what, patience)
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	p := newPort()
	h := newHost(t, p.plug(t))
	echo(t, Listen(p.open))
	errs := make(chan error)
	const many = 100
	for i := range many {
		c := dial(t, h)
		go func() { errs <- roundTrip(c, 1000*i+1) }()
	}
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestLargeTransfer(t *testing.T) {
	p := newPort()
	h := newHost(t, p.plug(t))
	echo(t, Listen(p.open))
	if err := roundTrip(dial(t, h), 16<<20); err != nil {
		t.Error(err)
	}
}

func TestNothingWrittenIsLostByClose(t *testing.T) {
	p := newPort()
	h := newHost(t, p.plug(t))
	l := Listen(p.open)
	defer func() { _ = l.Close() }()
	want := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = c.Write(want)
			_ = c.Close()
		}
	}()
	got, err := io.ReadAll(dial(t, h))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived of %d, %v", len(got), len(want), err)
	}
}

func TestHostGoesAwayAndComesBack(t *testing.T) {
	p := newPort()
	echo(t, Listen(p.open))
	for i := range 5 {
		h := newHost(t, p.plug(t))
		c := dial(t, h)
		if err := roundTrip(c, 100_000); err != nil {
			t.Fatalf("host %d: %v", i, err)
		}
		_ = h.Close()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlived its host")
		}
	}
}

func TestListenerSurvivesGarbage(t *testing.T) {
	p := newPort()
	echo(t, Listen(p.open))
	for _, garbage := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"),
		bytes.Repeat([]byte{0xff}, 100_000),
		{0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},             // no such type
		{0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff}, // more data than the window
		{0, 0, 0},
	} {
		conn := p.plug(t)
		_, _ = conn.Write(garbage)
		_ = conn.Close()
		h := newHost(t, p.plug(t))
		if err := roundTrip(dial(t, h), 1000); err != nil {
			t.Errorf("after %q…: %v", garbage[:3], err)
		}
		_ = h.Close()
	}
}

// A guest's end that is gone takes its connections along, though the port is
// still there: the next end knows nothing of them. Before there was an answer
// nothing is lost.
func TestGuestHangsUp(t *testing.T) {
	p := newPort()
	h := newHost(t, p.plug(t))
	h.HungUp()
	c, idle := dial(t, h), dial(t, h)
	echo(t, Listen(p.open))
	if err := roundTrip(c, 1000); err != nil {
		t.Fatalf("after a port that was closed while nobody listened: %v", err)
	}
	h.HungUp()
	within(t, "the end of all connections", func() {
		for _, c := range []net.Conn{c, idle} {
			if n, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d bytes came", n)
			}
		}
		if _, err := h.Dial(t.Context()); err == nil {
			t.Error("a new connection was made")
		}
	})
}

func TestCloseEndsAccept(t *testing.T) {
	l := Listen(newPort().open)
	got := make(chan error)
	go func() { _, err := l.Accept(); got <- err }()
	_ = l.Close()
	within(t, "Accept of a closed listener", func() {
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	})
}

// A guest that neither reads nor answers must not hold anybody: not Dial, not
// Read, not Write, not Close.
func TestSilentGuest(t *testing.T) {
	conn, _ := socketpair(t)
	h := newHost(t, conn)
	c := dial(t, h)
	blocked := make(chan error, 2)
	go func() { _, err := c.Read(make([]byte, 1)); blocked <- err }()
	go func() { // more than the window and the socket hold
		for {
			if _, err := dialLess(h).Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}()
	go func() { _, err := c.Write(make([]byte, 4<<20)); blocked <- err }()
	time.Sleep(100 * time.Millisecond) // let them block
	within(t, "Close of a connection", func() { _ = c.Close() })
	within(t, "Read and Write of a closed connection", func() {
		for range 2 {
			if err := <-blocked; err == nil {
				t.Error("no error")
			}
		}
	})
	within(t, "Dial with a context that ends", func() {
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_, err := h.Dial(ctx)
			cancel()
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want a deadline", err)
				}
				return
			}
		}
	})
	within(t, "Close of the host's end", func() { _ = h.Close() })
}

// dialLess gives a connection that fails at once where there is none.
func dialLess(h *Host) net.Conn {
	c, err := h.Dial(context.Background())
	if err != nil {
		a, _ := net.Pipe()
		_ = a.Close()
		return a
	}
	return c
}

func TestDeadlines(t *testing.T) {
	p := newPort()
	h := newHost(t, p.plug(t))
	c := dial(t, h)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
}

// What yamux would keep for a guest, without a bound, ends the session.
func TestHostRefusesGuestsThatAsk(t *testing.T) {
	for name, frame := range map[string][]byte{
		"ping":         {0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7},
		"stream":       {0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0},
		"window":       {0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 1, 0},
		"after data":   append([]byte{0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 3, 'x', 'y', 'z'}, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7),
		"not a header": []byte("Probing EDD (edd=off to disable)... ok\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			conn, guest := socketpair(t)
			h := newHost(t, conn)
			c := dial(t, h)
			for _, b := range frame { // a byte at a time, as they may come
				_, _ = guest.Write([]byte{b})
			}
			within(t, "the end of the session", func() {
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("the connection lives on")
				}
				for {
					if _, err := h.Dial(t.Context()); err != nil {
						return
					}
				}
			})
		})
	}
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 'a', 'b', 'c', 0, 1, 0, 0}, uint8(5))
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7}, uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		whole := new(guard).look(in)
		parts, pass := new(guard), true
		for rest := in; len(rest) > 0 && pass; {
			n := min(len(rest), int(step)+1)
			pass, rest = parts.look(rest[:n]), rest[n:]
		}
		if pass != whole {
			t.Errorf("in one piece: %v, in pieces of %d: %v", whole, step+1, pass)
		}
	})
}
