package usernet

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// This file makes a guest of the host's own kernel: a network namespace whose
// only interface is a tap, set up as fcvm's guests are. Two processes of this
// test program stand for the VM: the VMM, which attaches to its network as
// Firecracker or QEMU would and passes frames on to the tap; and the guest,
// which opens sockets in its namespace and hands them to the test.

// Arguments by which this program knows that it is one of them.
const (
	argVMM   = "test-vmm"
	argGuest = "test-guest"
)

// What these processes inherit.
const (
	fdControl = 3 + iota // towards the test
	fdLink               // VMM: QEMU's socket, if that is how it attaches; guest: towards the VMM
)

// vmmHeader is the size of the virtio-net header that VMMs use.
const vmmHeader = 12

func TestMain(m *testing.M) {
	netns.Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case argVMM:
			exit(runVMM(len(os.Args) > 2))
		case argGuest:
			exit(runGuest(len(os.Args) > 2))
		}
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// kernelGuest is the test's side.
type kernelGuest struct{ control *net.UnixConn }

type request struct{ Op, Network, Addr string }

func newKernelGuest(t testing.TB, a network.Attachment) *kernelGuest {
	t.Helper()
	ours, theirs := seqpacketPair(t)
	cmd := vmm.Command{
		Path: "/proc/self/exe", Args: []string{argVMM}, Env: os.Environ(), Dir: t.TempDir(),
		Stdout: os.Stdout, Stderr: os.Stderr, Extra: []*os.File{theirs},
	}
	if s := a.Net().Socket; s != nil {
		cmd.Extra = append(cmd.Extra, s)
		cmd.Args = append(cmd.Args, "socket")
	}
	var l vmm.Launcher = launch.Direct{}
	if a.Launcher() != nil {
		l = a.Launcher()
	}
	p, err := l.Launch(t.Context(), cmd)
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Signal(syscall.SIGKILL)
		p.Wait()
		_ = ours.Close()
	})
	_ = ours.SetReadDeadline(time.Now().Add(patience))
	if err := reply(ours, nil); err != nil { // the guest is up
		t.Fatalf("start the guest: %v", err)
	}
	return &kernelGuest{ours}
}

// needNamespaces skips a test where its guest cannot be made.
func needNamespaces(t testing.TB) {
	t.Helper()
	if err := netns.Check(); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = namespaces()
	if err := cmd.Run(); err != nil {
		t.Skipf("user namespaces cannot be made here: %v", err)
	}
}

func namespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
}

func seqpacketPair(t testing.TB) (ours *net.UnixConn, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "control")
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "control")
}

// open has the guest open a socket.
func (g *kernelGuest) open(op, network, addr string) (*os.File, error) {
	b, err := json.Marshal(request{op, network, addr})
	if err != nil {
		return nil, err
	}
	_ = g.control.SetDeadline(time.Now().Add(2 * patience))
	if _, err := g.control.Write(b); err != nil {
		return nil, err
	}
	var f *os.File
	err = reply(g.control, &f)
	return f, err
}

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
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("no file received: %w", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return err
	}
	*f = os.NewFile(uintptr(fds[0]), "socket of the guest")
	return nil
}

func (g *kernelGuest) dial(t testing.TB, network, addr string) (net.Conn, error) {
	t.Helper()
	f, err := g.open("dial", network, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return net.FileConn(f)
}

func (g *kernelGuest) listen(t testing.TB, port uint16) net.Listener {
	t.Helper()
	f, err := g.open("listen", "tcp4", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (g *kernelGuest) listenPacket(t testing.TB, port uint16) net.PacketConn {
	t.Helper()
	f, err := g.open("listenPacket", "udp4", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// runVMM is the VMM's process: it connects the guest's tap with the network.
func runVMM(socket bool) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(fds[1]), "link")
	cmd := exec.Command("/proc/self/exe", argGuest)
	if socket {
		cmd.Args = append(cmd.Args, "socket")
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(fdControl, "control"), theirs}
	p, err := launch.Start(cmd, namespaces())
	if err != nil {
		return err
	}
	_ = theirs.Close()
	_ = unix.Close(fdControl)
	oob := make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(fds[0], make([]byte, 1), oob, 0)
	if err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("receive the guest's tap: %d messages, %w", len(msgs), err)
	}
	tap, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return err
	}
	if socket {
		go pumpToSocket(fdLink, tap[0])
		go pumpFromSocket(tap[0], fdLink)
	} else {
		// As Firecracker does it: the tap is there, and is this user's.
		fd, err := openTestTap(network.TapName, true)
		if err != nil {
			return err
		}
		go pump(fd, tap[0])
		go pump(tap[0], fd)
	}
	p.Wait()
	return nil
}

func pump(dst, src int) {
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(src, b)
		if err == nil {
			_, err = unix.Write(dst, b[:n])
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EINVAL) {
			exit(fmt.Errorf("pass a frame of %d bytes on: %w", n, err))
		}
	}
}

func pumpToSocket(sock, tap int) {
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(tap, b[4:])
		if err != nil {
			exit(err)
		}
		binary.BigEndian.PutUint32(b, uint32(n))
		for part := b[:4+n]; len(part) > 0; {
			w, err := unix.Write(sock, part)
			if err != nil {
				exit(err)
			}
			part = part[w:]
		}
	}
}

func pumpFromSocket(tap, sock int) {
	r := os.NewFile(uintptr(sock), "socket")
	b := make([]byte, 1<<17)
	for {
		if _, err := io.ReadFull(r, b[:4]); err != nil {
			exit(nil)
		}
		n := binary.BigEndian.Uint32(b)
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			exit(err)
		}
		if _, err := unix.Write(tap, b[:n]); err != nil {
			exit(err)
		}
	}
}

// openTestTap opens a tap, with the offloads of a VMM or with none.
func openTestTap(name string, offloads bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if offloads {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, fmt.Errorf("open tap %s: %w", name, err)
	}
	if !offloads {
		return fd, nil
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vmmHeader); err != nil {
		return -1, err
	}
	return fd, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
}

// runGuest is the guest's process, in its namespace: it sets the interface up
// as the agent does, and then serves requests for sockets.
func runGuest(socket bool) error {
	fd, err := openTestTap(network.GuestInterface, !socket)
	if err != nil {
		return err
	}
	if err := configureGuest(); err != nil {
		return err
	}
	if err := unix.Sendmsg(fdLink, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	control, err := net.FileConn(os.NewFile(fdControl, "control"))
	if err != nil {
		return err
	}
	c := control.(*net.UnixConn)
	if _, err := c.Write([]byte{0}); err != nil {
		return err
	}
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil || n == 0 {
			return err
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

func configureGuest() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := netlink.LinkByName(network.GuestInterface)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(vmm.GuestMAC)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(network.GuestAddress)
	if err != nil {
		return err
	}
	return errors.Join(
		netlink.LinkSetUp(lo),
		netlink.LinkSetHardwareAddr(eth, mac), netlink.LinkSetMTU(eth, mtu),
		netlink.AddrAdd(eth, addr), netlink.LinkSetUp(eth),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(network.Gateway)}),
	)
}

// serve opens one socket and sends it.
func (r *request) serve(c *net.UnixConn) error {
	var s interface {
		File() (*os.File, error)
		io.Closer
	}
	var err error
	switch r.Op {
	case "dial":
		var conn net.Conn
		if conn, err = net.DialTimeout(r.Network, r.Addr, patience); err == nil {
			s, _ = conn.(interface {
				File() (*os.File, error)
				io.Closer
			})
		}
	case "listen":
		var l net.Listener
		if l, err = net.Listen(r.Network, r.Addr); err == nil {
			s = l.(*net.TCPListener)
		}
	default:
		var pc net.PacketConn
		if pc, err = net.ListenPacket(r.Network, r.Addr); err == nil {
			s = pc.(*net.UDPConn)
		}
	}
	if err != nil {
		_, err = c.Write([]byte("\x00" + err.Error()))
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
