package nettest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// Way is a way to connect: from somewhere to a listener somewhere else.
type Way struct {
	Dial     func() (net.Conn, error)
	Listener net.Listener
}

// Connect makes both ends of one connection, which last until the test's end.
func (w Way) Connect(t testing.TB) (client, server net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := w.Listener.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	client, err := w.Dial()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case server = <-accepted:
	case <-time.After(patience):
		t.Fatal("the connection does not arrive")
	}
	if server == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	deadline := time.Now().Add(patience)
	_, _ = client.SetDeadline(deadline), server.SetDeadline(deadline)
	return client, server
}

// Bulk sends that many bytes each way at once, and compares checksums.
func (w Way) Bulk(t *testing.T, size int64) {
	client, server := w.Connect(t)
	start := time.Now()
	var work sync.WaitGroup
	for i, way := range [][2]net.Conn{{client, server}, {server, client}} {
		sum := make(chan [32]byte, 1)
		work.Go(func() {
			h := sha256.New()
			src := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
			if _, err := io.Copy(io.MultiWriter(struct{ io.Writer }{way[0]}, h), src); err != nil {
				t.Errorf("send: %v", err)
			}
			sum <- [32]byte(h.Sum(nil))
			closeWrite(t, way[0])
		})
		work.Go(func() {
			h := sha256.New()
			n, err := io.Copy(h, struct{ io.Reader }{way[1]})
			if want := <-sum; err != nil || n != size || [32]byte(h.Sum(nil)) != want {
				t.Errorf("received %d of %d bytes, %v, same checksum: %t", n, size, err, [32]byte(h.Sum(nil)) == want)
			}
		})
	}
	work.Wait()
	t.Logf("%d MB each way in %v", size/1e6, time.Since(start).Round(time.Millisecond))
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Errorf("close the sending half: %v", err)
	}
}

// HalfClose answers only when the question has ended.
func (w Way) HalfClose(t *testing.T) {
	client, server := w.Connect(t)
	go func() {
		b, err := io.ReadAll(server)
		if err != nil {
			t.Error(err)
		}
		if _, err := server.Write(bytes.ToUpper(b)); err != nil {
			t.Error(err)
		}
		_ = server.Close()
	}()
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, client)
	if b, err := io.ReadAll(client); err != nil || string(b) != "QUESTION" {
		t.Errorf("got %q, %v", b, err)
	}
}

// atOnce is how many connections are made at a time.
const atOnce = 8

// Short makes many short connections, some at a time.
func (w Way) Short(t *testing.T, conns, atOnce int) {
	go echo(w.Listener)
	var work sync.WaitGroup
	for worker := range atOnce {
		work.Go(func() {
			for i := range conns / atOnce {
				if err := echoOnce(w.Dial, fmt.Sprintf("%d/%d", worker, i)); err != nil {
					t.Errorf("connection %d of worker %d: %v", i, worker, err)
					return
				}
			}
		})
	}
	work.Wait()
}

// echo sends every connection back what it sends, until l is closed, which
// ends them all.
func echo(l net.Listener) {
	var mu sync.Mutex
	open := make(map[net.Conn]struct{})
	for {
		c, err := l.Accept()
		mu.Lock()
		if err != nil {
			for c := range open {
				_ = c.Close()
			}
			mu.Unlock()
			return
		}
		open[c] = struct{}{}
		mu.Unlock()
		go func() {
			_, _ = io.Copy(c, struct{ io.Reader }{c})
			_ = c.Close()
			mu.Lock()
			defer mu.Unlock()
			delete(open, c)
		}()
	}
}

func echoOnce(dial func() (net.Conn, error), text string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("got %q, want %q", b, text)
	}
	return nil
}

// Reset closes a connection whose received data was not read: the kernel
// resets it, and that must not look like an orderly end.
func (w Way) Reset(t *testing.T) {
	client, server := w.Connect(t)
	if _, err := client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read from a connection that was reset: %v", err)
	}
}

// All is everything that TCP is to do on every way.
func (w Way) All(t *testing.T, size int64, conns int) {
	t.Run("bulk", func(t *testing.T) { w.Bulk(t, size) })
	t.Run("half-close", func(t *testing.T) { w.HalfClose(t) })
	t.Run("reset", func(t *testing.T) { w.Reset(t) })
	t.Run("short", func(t *testing.T) { w.Short(t, conns, atOnce) }) // last: it goes on to accept
}

// Datagrams exchanges datagrams of these sizes with an echo on pc.
func Datagrams(t *testing.T, pc net.PacketConn, dial func() (net.Conn, error), sizes ...int) {
	t.Helper()
	go echoPackets(pc)
	for range 2 { // the second client is another one
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range sizes {
			want := bytes.Repeat([]byte{byte(size)}, size)
			if err := exchange(c, want); err != nil {
				t.Errorf("datagram of %d bytes: %v", size, err)
			}
		}
		_ = c.Close()
	}
}

func echoPackets(pc net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}
}

// exchange sends a datagram until it comes back, for datagrams may get lost.
func exchange(c net.Conn, want []byte) error {
	buf := make([]byte, 1<<16)
	var err error
	for range 5 {
		if _, err = c.Write(want); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		var n int
		if n, err = c.Read(buf); err == nil {
			if !bytes.Equal(buf[:n], want) {
				return fmt.Errorf("%d bytes came back, not the same", n)
			}
			return nil
		}
	}
	return err
}
