package vsocklink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// machine is a guest that the test is, and the host's end of it.
type machine struct {
	*Host
	guest *Listener
	path  string

	mu    sync.Mutex
	conns []net.Conn
}

// newMachine has serve do with each link what the guest does.
func newMachine(t *testing.T, serve func(net.Conn)) *machine {
	t.Helper()
	m := &machine{path: filepath.Join(t.TempDir(), "vsock")}
	inner, err := net.Listen("unix", m.path)
	if err != nil {
		t.Fatal(err)
	}
	m.guest = Listen(inner)
	m.Host = NewHost(m.connect)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := m.guest.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer func() { _ = c.Close() }(); serve(c) })
		}
	})
	t.Cleanup(func() {
		m.Close()
		_ = inner.Close()
		m.cutAll()
		all.Wait()
	})
	return m
}

func (m *machine) connect(ctx context.Context) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", m.path)
	if err == nil {
		m.mu.Lock()
		m.conns = append(m.conns, c)
		m.mu.Unlock()
	}
	return c, err
}

// cutAll is what a VMM does that saves its machine.
func (m *machine) cutAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		_ = c.Close()
	}
	m.conns = nil
}

func (m *machine) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// exchange has a byte come back from an echo: the link is there at both ends.
func exchange(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// save cuts the connections until the test ends, as often as it can.
func (m *machine) save(t *testing.T) (stop func()) {
	t.Helper()
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond):
			}
			m.Saving()
			if i%2 == 0 {
				m.cutAll()
			}
			m.Resumed()
		}
	}()
	return func() { close(done); <-stopped }
}

// All that is sent arrives, once and in order, however often connections are cut.
func TestNothingIsLost(t *testing.T) {
	m := newMachine(t, echo)
	stop := m.save(t)
	defer stop()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			c := m.dial(t)
			data := make([]byte, 6<<20)
			for j := range data {
				data[j] = byte(j>>12 ^ j*7 + i)
			}
			go func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rand.IntN(100<<10))
					if _, err := c.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			}()
			got := make([]byte, len(data))
			if n, err := io.ReadFull(c, got); err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			} else if sha256.Sum256(got) != sha256.Sum256(data) {
				t.Error("other data has come back")
			}
		})
	}
	all.Wait()
}

// Short links, that are closed as soon as they have said all, say all.
func TestLastWords(t *testing.T) {
	m := newMachine(t, func(c net.Conn) {
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err == nil {
			_, _ = fmt.Fprintf(c, "you said %s", b)
		}
	})
	stop := m.save(t)
	defer stop()
	for i := range 200 {
		c := m.dial(t)
		ask := fmt.Sprintf("%04d", i)
		if _, err := io.WriteString(c, ask); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); string(b) != "you said "+ask || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		_ = c.Close()
	}
}

// An end that is closed is closed at the other end as well, and both forget it.
func TestClose(t *testing.T) {
	ended := make(chan error, 1)
	m := newMachine(t, func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c := m.dial(t)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the guest did not see the end")
	}
	deadline := time.Now().Add(10 * time.Second)
	for m.count() != 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if n := m.count(); n != 0 {
		t.Errorf("%d ends of links are left", n)
	}
}

func (m *machine) count() int {
	m.Host.mu.Lock()
	defer m.Host.mu.Unlock()
	m.guest.mu.Lock()
	defer m.guest.mu.Unlock()
	n := len(m.Host.links)
	for _, l := range m.guest.links {
		if l != nil {
			n++
		}
	}
	return n
}

// One that is not read holds up neither what it sends nor other links.
func TestSlowReader(t *testing.T) {
	m := newMachine(t, func(c net.Conn) {
		go func() { _, _ = io.Copy(c, bytes.NewReader(make([]byte, 4*window))) }()
		_, _ = io.Copy(io.Discard, c)
	})
	slow := m.dial(t)
	if _, err := slow.Write(make([]byte, 8*window)); err != nil { // the guest takes it
		t.Error(err)
	}
	if n, err := io.CopyN(io.Discard, slow, 4*window); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
}

// A loss that no snapshot explains ends the link at once.
func TestLossIsAnEnd(t *testing.T) {
	m := newMachine(t, echo)
	c := m.dial(t)
	exchange(t, c)
	m.cutAll()
	began := time.Now()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) > patience/2 {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

// A machine that has gone is not waited for.
func TestEnded(t *testing.T) {
	m := newMachine(t, echo)
	c := m.dial(t)
	exchange(t, c)
	m.Saving()
	_ = m.guest.Listener.Close()
	m.cutAll()
	time.AfterFunc(50*time.Millisecond, m.Ended)
	began := time.Now()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) > patience/2 {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if _, err := m.Dial(t.Context()); err == nil {
		t.Error("a machine that is gone was reached")
	}
}

// In a clone the links of the original end, when its own host comes.
func TestAnotherHost(t *testing.T) {
	ended := make(chan struct{}, 1)
	m := newMachine(t, func(c net.Conn) {
		echo(c)
		ended <- struct{}{}
	})
	c := m.dial(t)
	exchange(t, c)
	other := NewHost(m.connect)
	defer other.Close()
	second, err := other.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the first host's link goes on")
	}
	if _, err := second.Write([]byte("y")); err != nil {
		t.Error(err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(second, b); err != nil || b[0] != 'y' {
		t.Errorf("%q, %v", b, err)
	}
}

// What a guest may not say ends the link, and takes no memory.
func TestHostileGuest(t *testing.T) {
	ack := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }
	for what, says := range map[string][]byte{
		"a bad answer":                {7, 0, 0, 0, 0, 0, 0, 0, 0},
		"too long a frame":            append(encodeAnswer(true, 0), frameData, 0xff, 0xff, 0xff, 0xff),
		"an unknown frame":            appendFrame(encodeAnswer(true, 0), 9, nil),
		"a bad ack":                   appendFrame(encodeAnswer(true, 0), frameAck, []byte{1}),
		"an ack of what was not sent": appendFrame(encodeAnswer(true, 0), frameAck, ack(1)),
		"an ack of too much":          appendFrame(encodeAnswer(true, 0), frameAck, ack(200)),
		"data after the end":          appendFrame(appendFrame(encodeAnswer(true, 0), frameClose, nil), frameData, []byte("x")),
		"more than a window":          append(encodeAnswer(true, 0), bytes.Repeat(appendFrame(nil, frameData, make([]byte, chunk)), 2*window/chunk)...),
	} {
		t.Run(what, func(t *testing.T) {
			ours, theirs := net.Pipe()
			h := NewHost(func(context.Context) (net.Conn, error) { return ours, nil })
			defer h.Close()
			h.Saving() // a loss would be excused
			go func() {
				_, _ = readHello(theirs)
				go func() { _, _ = io.Copy(io.Discard, theirs) }()
				_, _ = theirs.Write(says)
			}()
			c, err := h.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if what != "more than a window" {
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("the link goes on")
				}
			}
			deadline := time.Now().Add(10 * time.Second)
			for h.count() != 0 && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if h.count() != 0 {
				t.Error("the link is kept")
			}
			_ = c.Close()
		})
	}
}

func (h *Host) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.links)
}

// A link has deadlines, as an HTTP server needs them.
func TestDeadline(t *testing.T) {
	m := newMachine(t, echo)
	c := m.dial(t)
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Error(err)
	}
}
