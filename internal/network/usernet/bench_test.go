package usernet

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

// BenchmarkStream sends one TCP stream between the host and a guest of the
// host's own kernel, over each kind of link and in each direction.
func BenchmarkStream(b *testing.B) {
	for _, link := range []struct {
		name string
		caps vmm.Capabilities
	}{{"socket", vmm.Capabilities{SockNetwork: true}}, {"tap", vmm.Capabilities{TapNetwork: true}}} {
		b.Run(link.name, func(b *testing.B) {
			needNamespaces(b)
			a := attach(b, link.caps, guestPorts()...)
			g := newKernelGuest(b, a)
			host := listenHost(b)
			guest, pub := g.listen(b, a.Ports()[1].GuestPort), a.Ports()[1].HostAddr().String()
			b.Cleanup(func() { _ = guest.Close() })
			out, outEnd := connect(b, func() (net.Conn, error) { return g.dial(b, "tcp", atGateway(b, host.Addr())) }, host)
			in, inEnd := connect(b, func() (net.Conn, error) { return net.Dial("tcp", pub) }, guest)
			for _, way := range []struct {
				name     string
				from, to net.Conn
			}{{"out", out, outEnd}, {"in", outEnd, out}, {"published-in", in, inEnd}, {"published-out", inEnd, in}} {
				b.Run(way.name, func(b *testing.B) { benchmarkStream(b, way.from, way.to) })
			}
		})
	}
}

func benchmarkStream(b *testing.B, from, to net.Conn) {
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
