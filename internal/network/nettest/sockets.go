package nettest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience is the limit on anything that the tests wait for.
const patience = 2 * time.Minute

// Sockets opens sockets in the network namespace of another process. It is
// safe for concurrent use.
type Sockets struct {
	mu      sync.Mutex
	control *net.UnixConn
}

// request is what the other process is asked for.
type request struct {
	Op      string // dial, listen, listenPacket, ping, configure, route, address
	Network string
	Addr    string
	Addrs   []string // of an interface to configure
}

// theNeighbour makes one Sockets for all tests, on the descriptor that this
// process has inherited.
var theNeighbour = func() func(fd int) (*Sockets, error) {
	var once sync.Once
	var s *Sockets
	var err error
	return func(fd int) (*Sockets, error) {
		once.Do(func() {
			var c net.Conn
			if c, err = net.FileConn(os.NewFile(uintptr(fd), "neighbour")); err == nil {
				s = &Sockets{control: c.(*net.UnixConn)}
			}
		})
		return s, err
	}
}()

func seqpacketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "control")
	defer func() { _ = f.Close() }()
	theirs = os.NewFile(uintptr(fds[1]), "control")
	c, err := net.FileConn(f)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// open has the other process open a socket.
func (s *Sockets) open(r request) (*os.File, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.control.SetDeadline(time.Now().Add(2 * patience))
	if _, err := s.control.Write(b); err != nil {
		return nil, err
	}
	var f *os.File
	err = reply(s.control, &f)
	return f, err
}

const errNoFile = "no file received"

// reply receives an error, or none and perhaps a file.
func reply(c *net.UnixConn, f **os.File) error {
	msg, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(msg, oob)
	switch {
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	case n > 1:
		return errors.New(string(msg[1:n]))
	case f == nil:
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	if len(msgs) != 1 {
		return errors.New(errNoFile)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return err
	}
	*f = os.NewFile(uintptr(fds[0]), "socket")
	return nil
}

// Dial connects from that namespace. The connection is closed by the caller.
func (s *Sockets) Dial(network, addr string) (net.Conn, error) {
	f, err := s.open(request{Op: "dial", Network: network, Addr: addr})
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return net.FileConn(f)
}

// Listen listens there until the test's end.
func (s *Sockets) Listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	f, err := s.open(request{Op: "listen", Network: network, Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket opens an unconnected socket there until the test's end.
func (s *Sockets) ListenPacket(t testing.TB, network, addr string) net.PacketConn {
	t.Helper()
	f, err := s.open(request{Op: "listenPacket", Network: network, Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Route adds a route there.
func (s *Sockets) Route(dst, via string) error {
	return s.change(request{Op: "route", Network: dst, Addr: via})
}

// AddAddr gives an interface there one more address, with its length.
func (s *Sockets) AddAddr(link, addr string) error {
	return s.change(request{Op: "address", Network: link, Addr: addr})
}

// change has the other process do what leaves it with no socket.
func (s *Sockets) change(r request) error {
	_, err := s.open(r)
	if err != nil && err.Error() == errNoFile {
		return nil
	}
	return err
}

// Ping sends one ICMP echo request from there and waits for its reply.
func (s *Sockets) Ping(addr string, payload []byte) error {
	f, err := s.open(request{Op: "ping"})
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(pingTimeout))
	echo := append([]byte{8, 0, 0, 0, 0, 0, 0, 7}, payload...) // type, code, checksum, identifier, sequence
	if _, err := c.WriteTo(echo, &net.UDPAddr{IP: net.ParseIP(addr)}); err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	n, _, err := c.ReadFrom(b)
	switch {
	case err != nil:
		return err
	case n < 8 || b[0] != 0 || b[7] != 7 || !bytes.Equal(b[8:n], payload):
		return fmt.Errorf("an answer of %d bytes, type %d", n, b[0])
	}
	return nil
}

const pingTimeout = 10 * time.Second

// serveSockets is the other process's side.
func serveSockets(control *os.File) error {
	conn, err := net.FileConn(control)
	if err != nil {
		return err
	}
	c := conn.(*net.UnixConn)
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil || n == 0 {
			return nil // nobody asks any more
		}
		var r request
		if err := json.Unmarshal(b[:n], &r); err != nil {
			return err
		}
		if err := r.serve(c); err != nil {
			return err
		}
	}
}

// filed is a socket that can be handed over.
type filed interface {
	File() (*os.File, error)
	io.Closer
}

// serve opens one socket and sends it.
func (r *request) serve(c *net.UnixConn) error {
	s, err := r.do()
	if err != nil {
		_, err = c.Write([]byte("\x00" + err.Error()))
		return err
	}
	if s == nil {
		_, err = c.Write([]byte{0})
		return err
	}
	defer func() { _ = s.Close() }()
	f, err := s.File()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, _, err = c.WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil)
	return err
}

func (r *request) do() (filed, error) {
	switch r.Op {
	case "route":
		_, dst, err := net.ParseCIDR(r.Network)
		if err != nil {
			return nil, err
		}
		return nil, netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(r.Addr)})
	case "address":
		l, err := netlink.LinkByName(r.Network)
		if err != nil {
			return nil, err
		}
		addr, err := netlink.ParseAddr(r.Addr)
		if err != nil {
			return nil, err
		}
		addr.Flags = unix.IFA_F_NODAD
		return nil, netlink.AddrReplace(l, addr)
	case "configure":
		return nil, configure(r.Network, r.Addrs, nil)
	case "dial":
		c, err := net.DialTimeout(r.Network, r.Addr, dialTimeout)
		if err != nil {
			return nil, err
		}
		return c.(filed), nil
	case "listen":
		l, err := net.Listen(r.Network, r.Addr)
		if err != nil {
			return nil, err
		}
		return l.(filed), nil
	case "ping":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return nil, os.NewSyscallError("socket", err)
		}
		return rawSocket{os.NewFile(uintptr(fd), "ping")}, nil
	default:
		c, err := net.ListenPacket(r.Network, r.Addr)
		if err != nil {
			return nil, err
		}
		return c.(filed), nil
	}
}

// rawSocket is one that package net has no type for.
type rawSocket struct{ f *os.File }

func (s rawSocket) Close() error { return s.f.Close() }

func (s rawSocket) File() (*os.File, error) {
	fd, err := unix.FcntlInt(s.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), s.f.Name()), err
}

// dialTimeout is how long the other process tries to connect: longer than a
// few lost packets take, shorter than patience.
const dialTimeout = 15 * time.Second
