package nettest

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm"
)

// Benchmark measures one TCP stream each way between the host and a guest
// ("out" from the guest, "in" through a published port), and the time of one
// byte there and back, over a backend's network. The guest is the same as in
// the suite: what is compared is what lies between it and the host.
func Benchmark(b *testing.B, backend network.Backend, caps vmm.Capabilities) {
	Need(b)
	port := network.Port{HostIP: netip.IPv4Unspecified(), GuestPort: portBulk, Protocol: network.TCP}
	a := Start(b, backend, network.Config{Ports: []network.Port{port}, Capabilities: caps})
	g := NewGuest(b, a)
	host, err := net.Listen("tcp4", ":0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = host.Close() })
	_, hostPort, _ := net.SplitHostPort(host.Addr().String())
	guest := g.Listen(b, "tcp4", ":8080")
	out := Way{Listener: host, Dial: func() (net.Conn, error) { return g.Dial("tcp4", net.JoinHostPort(network.Gateway, hostPort)) }}
	in := Way{Listener: guest, Dial: dialer("tcp4", at(HostAddr, find(b, a, portBulk)))}
	BenchmarkWays(b, out, in)
}

// BenchmarkWays measures a way out of the guest and one into it.
func BenchmarkWays(b *testing.B, out, in Way) {
	for name, w := range map[string]Way{"out": out, "in": in} {
		client, server := w.Connect(b)
		b.Run(name, func(b *testing.B) { stream(b, client, server) })
		b.Run(name+"-back", func(b *testing.B) { stream(b, server, client) })
		b.Run(name+"-latency", func(b *testing.B) { pingPong(b, client, server) })
	}
}

func stream(b *testing.B, from, to net.Conn) {
	chunk := make([]byte, 1<<20)
	deadline := time.Now().Add(patience)
	_, _ = from.SetDeadline(deadline), to.SetDeadline(deadline)
	b.SetBytes(int64(len(chunk)))
	n := b.N
	done := make(chan error, 1)
	b.ResetTimer()
	go func() {
		_, err := io.CopyN(io.Discard, struct{ io.Reader }{to}, int64(n)*int64(len(chunk)))
		done <- err
	}()
	for range n {
		if _, err := from.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func pingPong(b *testing.B, client, server net.Conn) {
	deadline := time.Now().Add(patience)
	_, _ = client.SetDeadline(deadline), server.SetDeadline(deadline)
	n := b.N
	done := make(chan error, 1)
	go func() {
		one := make([]byte, 1)
		for range n {
			if _, err := io.ReadFull(server, one); err != nil {
				done <- err
				return
			}
			if _, err := server.Write(one); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	one := make([]byte, 1)
	b.ResetTimer()
	for range n {
		if _, err := client.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, one); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
