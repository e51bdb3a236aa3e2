package nettest

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
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// What the processes that stand for a VM inherit.
const (
	fdControl = 3 + iota // towards the test
	fdLink               // VMM: QEMU's socket, if that is how it attaches; guest: towards the VMM
)

// vmmHeader is the size of the virtio-net header that VMMs use.
const vmmHeader = 12

// machine is what these processes are told.
type machine struct {
	Socket bool // the VMM attaches by a socket
	MTU    int
	IPv6   bool
}

// Guest is a namespace that is set up as fcvm's guests are, attached to a
// network as a VM would be.
type Guest struct {
	Sockets
	process vmm.Process
}

// NewGuest attaches a guest until the test's end, or until Kill.
func NewGuest(t testing.TB, a network.Attachment) *Guest {
	t.Helper()
	ours, theirs, err := seqpacketPair()
	if err != nil {
		t.Fatal(err)
	}
	m := machine{Socket: a.Net().Socket != nil, MTU: a.MTU(), IPv6: carriesIPv6(a)}
	arg, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	cmd := vmm.Command{
		Path: "/proc/self/exe", Args: []string{argVMM, string(arg)}, Env: os.Environ(), Dir: t.TempDir(),
		Stdout: os.Stdout, Stderr: os.Stderr, Extra: []*os.File{theirs},
	}
	if m.Socket {
		cmd.Extra = append(cmd.Extra, a.Net().Socket)
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
	g := &Guest{Sockets: Sockets{control: ours}, process: p}
	t.Cleanup(func() { g.Kill(); _ = ours.Close() })
	_ = ours.SetReadDeadline(time.Now().Add(patience))
	if err := reply(ours, nil); err != nil { // the guest is up
		t.Fatalf("start the guest: %v", err)
	}
	return g
}

// Kill ends the guest's VMM, and so the guest.
func (g *Guest) Kill() {
	_ = g.process.Signal(syscall.SIGKILL)
	g.process.Wait()
}

func carriesIPv6(a network.Attachment) bool {
	if ad, ok := a.(network.Addressed); ok {
		for _, addr := range ad.Addresses() {
			if addr.Is6() {
				return true
			}
		}
	}
	return false
}

func newNamespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
}

// runVMM is the VMM's process: it connects the guest's tap with the network.
func runVMM() error {
	var m machine
	if err := json.Unmarshal([]byte(os.Args[2]), &m); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(fds[1]), "link")
	cmd := exec.Command("/proc/self/exe", argGuest, os.Args[2])
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(fdControl, "control"), theirs}
	p, err := launch.Start(cmd, newNamespaces())
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
	if m.Socket {
		go pumpToSocket(fdLink, tap[0])
		go pumpFromSocket(tap[0], fdLink)
	} else {
		// As Firecracker does it: the tap is there, and is this user's.
		fd, err := openTap(network.TapName, true)
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
				exit(nil) // the network is closed
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
			exit(nil)
		}
		if _, err := unix.Write(tap, b[:n]); err != nil {
			exit(err)
		}
	}
}

// openTap opens a tap, with the offloads of a VMM or with none.
func openTap(name string, offloads bool) (int, error) {
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
func runGuest() error {
	var m machine
	if err := json.Unmarshal([]byte(os.Args[2]), &m); err != nil {
		return err
	}
	fd, err := openTap(network.GuestInterface, !m.Socket)
	if err != nil {
		return err
	}
	if err := m.configure(); err != nil {
		return err
	}
	if err := unix.Sendmsg(fdLink, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	if err := unix.Sendmsg(fdControl, []byte{0}, nil, nil, 0); err != nil {
		return err
	}
	return serveSockets(os.NewFile(fdControl, "control"))
}

func (m *machine) configure() error {
	eth, err := netlink.LinkByName(network.GuestInterface)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(vmm.GuestMAC)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetHardwareAddr(eth, mac), netlink.LinkSetMTU(eth, m.MTU)); err != nil {
		return err
	}
	addrs, gateways := []string{network.GuestAddress}, []string{network.Gateway}
	if m.IPv6 {
		addrs, gateways = append(addrs, network.GuestAddress6), append(gateways, network.Gateway6)
	}
	// As in a guest: so that ICMP sockets can be opened.
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644)
	return configure(network.GuestInterface, addrs, gateways)
}
