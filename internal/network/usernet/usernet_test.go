package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/vmm"
)

var socketVMM = vmm.Capabilities{SockNetwork: true}

func TestPortTaken(t *testing.T) {
	l := listenHost(t)
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, taken := range []struct {
		protocol string
		addr     net.Addr
	}{{network.TCP, l.Addr()}, {network.UDP, c.LocalAddr()}} {
		t.Run(taken.protocol, func(t *testing.T) {
			host := netip.MustParseAddrPort(taken.addr.String())
			free := network.Port{HostIP: loopback, GuestPort: 1, Protocol: network.TCP}
			p := network.Port{HostIP: host.Addr(), HostPort: host.Port(), GuestPort: 80, Protocol: taken.protocol}
			_, err := New().Start(t.Context(), network.Config{Ports: []network.Port{free, p}, Capabilities: socketVMM})
			if !errors.Is(err, network.ErrPortTaken) {
				t.Fatalf("got %v", err)
			}
			for _, want := range []string{host.String(), fmt.Sprintf("(process %d)", os.Getpid())} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not name %q", err, want)
				}
			}
		})
	}
}

// A port is free again when its VM's network is closed, even one that clients
// were connected to.
func TestPortsAreGivenBack(t *testing.T) {
	a := attach(t, socketVMM, guestPorts()...)
	ports := a.Ports()
	g := newStackGuest(t, a)
	l := g.listen(t, 8080)
	client, _ := nettest.Way{Listener: l, Dial: func() (net.Conn, error) { return net.Dial("tcp", ports[1].HostAddr().String()) }}.Connect(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the client's connection has survived: %v", err)
	}
	attach(t, socketVMM, ports...)
}

// A guest that does not read must not keep its network from being closed.
func TestCloseWithGuestThatDoesNotRead(t *testing.T) {
	a := attach(t, socketVMM, guestPorts()...)
	for range 64 {
		c, err := net.Dial("udp", a.Ports()[0].HostAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			_, _ = c.Write(make([]byte, 60000))
		}
		_ = c.Close()
	}
	done := make(chan error, 1)
	go func() { done <- a.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the network does not close")
	}
}

// A tap is preferred; a socket takes its place where namespaces are forbidden, which
// is said.
func TestTapOrSocket(t *testing.T) {
	forbidden := errors.New("namespaces are forbidden")
	for _, tt := range []struct {
		name  string
		caps  vmm.Capabilities
		probe error
		tap   bool
		said  bool
		want  error
	}{
		{"both", vmm.Capabilities{SockNetwork: true, TapNetwork: true}, nil, true, false, nil},
		{"both, and no namespaces", vmm.Capabilities{SockNetwork: true, TapNetwork: true}, forbidden, false, true, nil},
		{"a socket", vmm.Capabilities{SockNetwork: true}, nil, false, false, nil},
		{"a tap", vmm.Capabilities{TapNetwork: true}, nil, true, false, nil},
		{"a tap, and no namespaces", vmm.Capabilities{TapNetwork: true}, forbidden, true, false, network.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &Backend{probe: func(context.Context, netns.Tap) error { return tt.probe }}
			var said []string
			a, err := b.Start(t.Context(), network.Config{Capabilities: tt.caps, Say: func(line string) { said = append(said, line) }})
			if !errors.Is(err, tt.want) || tt.want != nil && !errors.Is(err, tt.probe) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err != nil {
				return
			}
			defer func() { _ = a.Close() }()
			if n := a.Net(); (n.Tap != "") != tt.tap || (n.Socket != nil) == tt.tap || (len(said) > 0) != tt.said {
				t.Errorf("the VMM is told %+v, the user %q", n, said)
			}
		})
	}
}

func TestSocketIsNeeded(t *testing.T) {
	if _, err := New().Start(t.Context(), network.Config{}); !errors.Is(err, network.ErrUnavailable) {
		t.Errorf("a VMM without a network: %v", err)
	}
}

// frame is an Ethernet frame with what is given behind its header.
func frame(dst, src string, etherType uint16, payload ...byte) []byte {
	d, _ := net.ParseMAC(dst)
	s, _ := net.ParseMAC(src)
	b := append(append([]byte{}, d...), s...)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

// A guest that sends nonsense harms nobody, and goes on to be served.
func TestHostileFrames(t *testing.T) {
	a := attach(t, socketVMM)
	conn, err := net.FileConn(a.Net().Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	send := func(b []byte) {
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
	}
	const broadcast = "ff:ff:ff:ff:ff:ff"
	for _, b := range [][]byte{
		{},
		{1},
		make([]byte, 13), make([]byte, 14), make([]byte, maxFrame),
		frame(network.GatewayMAC, vmm.GuestMAC, 0x0800),
		frame(network.GatewayMAC, vmm.GuestMAC, 0x0800, 0x4f, 0, 0, 20),
		frame(network.GatewayMAC, vmm.GuestMAC, 0x0800, append([]byte{0x45, 0, 0xff, 0xff, 0, 0, 0, 0, 64, 6, 0, 0}, make([]byte, 8)...)...),
		frame(broadcast, vmm.GuestMAC, 0x0806, 1, 2, 3),
		frame(broadcast, vmm.GuestMAC, 0x86dd, make([]byte, 40)...),
		arpRequest(vmm.GuestMAC, "10.0.2.99"),                       // not on the link
		arpRequest("02:00:00:00:00:01", "10.0.2.2"),                 // not the guest
		arpRequest(vmm.GuestMAC, "10.0.2.15"),                       // itself
		frame(network.GatewayMAC, network.GatewayMAC, 0x0800, 0x45), // the gateway's own address
		frame(broadcast, broadcast, 0x0806, 0, 1, 8),                //
		frame("00:00:00:00:00:00", vmm.GuestMAC, 0, 0),              //
	} {
		send(b)
	}
	for _, own := range []string{network.Gateway, network.DNS} {
		send(arpRequest(vmm.GuestMAC, own))
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			t.Fatalf("wait for an answer: %v", err)
		}
		b := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, b); err != nil || len(b) < 42 {
			t.Fatalf("read %d bytes, %v", len(b), err)
		}
		if ip, _ := netip.AddrFromSlice(b[28:32]); ip.String() != own {
			t.Errorf("answer of %s, want the only ones of %s", ip, own)
		}
	}
	// A length that no frame has ends the link, and allocates nothing.
	if _, err := conn.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
}

// A guest that begins connections and goes on with none of them must not keep
// its network from being closed either.
func TestCloseWithHalfOpenConnections(t *testing.T) {
	a := attach(t, socketVMM)
	conn, err := net.FileConn(a.Net().Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	l := listenHost(t)
	for port := range uint16(300) {
		b := synFrame(20000+port, netip.MustParseAddrPort(atGateway(t, l.Addr())))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("closing took %v", d)
	}
}

// synFrame is the first frame of a TCP connection.
func synFrame(from uint16, to netip.AddrPort) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	src, dst := stackAddr(guestPrefix.Addr()), stackAddr(to.Addr())
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	tcp := header.TCP(b[header.IPv4MinimumSize:])
	tcp.Encode(&header.TCPFields{SrcPort: from, DstPort: to.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000})
	return frame(network.GatewayMAC, vmm.GuestMAC, 0x0800, b...)
}

func arpRequest(src, target string) []byte {
	mac, _ := net.ParseMAC(src)
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, mac...), 10, 0, 2, 15)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return frame("ff:ff:ff:ff:ff:ff", src, 0x0806, append(b, netip.MustParseAddr(target).AsSlice()...)...)
}

func TestDestination(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.2.2":        "127.0.0.1",
		"192.0.2.1":       "192.0.2.1",
		"10.0.3.1":        "10.0.3.1",
		"10.0.2.3":        "",
		"10.0.2.15":       "",
		"127.0.0.1":       "",
		"169.254.169.254": "",
		"0.0.0.0":         "",
		"0.1.2.3":         "",
		"224.0.0.1":       "",
		"255.255.255.255": "",
	} {
		got, ok := destination(netip.MustParseAddr(addr))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s goes to %v, %t; want %q", addr, got, ok, want)
		}
	}
}
