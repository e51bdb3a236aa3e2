// Package nettest is the conformance suite of network backends. It needs no
// VM: its guest is a network namespace of the host's own kernel, attached by a
// process that opens what a backend gives to a VMM, a tap or a socket, as
// Firecracker and QEMU do.
//
// A backend's tests run on a host of their own, a scratch namespace with one
// neighbour behind a cable, who is the world: so what a backend changes on a
// host (interfaces, rules, settings) it changes there, and it goes with the
// test. A test program begins with
//
//	func TestMain(m *testing.M) { nettest.Main(m, nil) }
package nettest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network/netns"
)

// Roles that this program plays beside that of the test.
const (
	argHost      = "nettest-host"      // the tests, in the scratch namespace
	argNeighbour = "nettest-neighbour" // opens sockets in the namespace next to it
	argVMM       = "nettest-vmm"
	argGuest     = "nettest-guest"
)

// The scratch host and its neighbour.
const (
	HostAddr       = "198.51.100.1"
	NeighbourAddr  = "198.51.100.2"
	HostAddr6      = "2001:db8:64::1"
	NeighbourAddr6 = "2001:db8:64::2"

	hostLink      = "wan0"
	neighbourLink = "lan0"
)

// envNeighbour names the descriptor of the socket to the neighbour, and
// envSkip says why there is none.
const (
	envNeighbour = "FCVM_NETTEST_NEIGHBOUR"
	envSkip      = "FCVM_NETTEST_SKIP"
)

// Main runs a package's tests in a scratch namespace, or without one where it
// cannot be made; then Need skips. It does not return.
//
// roles are further ones that the program plays, when the role's name is its
// first argument, with the rest of them.
func Main(m *testing.M, roles map[string]func(args []string) error) {
	netns.Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case argVMM:
			exit(runVMM())
		case argGuest:
			exit(runGuest())
		case argNeighbour:
			exit(serveSockets(os.NewFile(3, "control")))
		}
	}
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		exit(roles[os.Args[1]](os.Args[2:]))
	}
	if os.Getenv(envNeighbour) != "" || os.Getenv(envSkip) != "" {
		os.Exit(m.Run())
	}
	if len(os.Args) > 1 && os.Args[1] == argHost {
		os.Args = append(os.Args[:1], os.Args[2:]...)
		code, err := runHost()
		if err != nil {
			exit(err)
		}
		os.Exit(code)
	}
	os.Exit(again(scratchHost()))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// again runs this program's tests once more, as cmd, and returns their code.
// Where that cannot be started, they run here, and know why.
func again(cmd *exec.Cmd) int {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var ended *exec.ExitError
	if err == nil || errors.As(err, &ended) {
		return cmd.ProcessState.ExitCode()
	}
	plain := exec.Command("/proc/self/exe", os.Args[1:]...)
	plain.Env = append(os.Environ(), envSkip+"=network namespaces cannot be made here: "+err.Error())
	return againPlain(plain)
}

func againPlain(cmd *exec.Cmd) int {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		exit(err)
	}
	return cmd.ProcessState.ExitCode()
}

// scratchHost is this program in namespaces where it is root.
func scratchHost() *exec.Cmd {
	runtime.LockOSThread() // of the parent-death signal
	cmd := exec.Command("/proc/self/exe", append([]string{argHost}, os.Args[1:]...)...)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	return cmd
}

// runHost sets the scratch host up, and runs the tests in it.
func runHost() (int, error) {
	dir, err := os.MkdirTemp("", "nettest-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := privateFiles(dir); err != nil {
		return 0, err
	}
	control, neighbour, err := startNeighbour()
	if err != nil {
		return 0, err
	}
	defer func() { _ = neighbour.Process.Kill(); _ = neighbour.Wait() }()
	if err := cable(neighbour.Process.Pid, control); err != nil {
		return 0, fmt.Errorf("connect the neighbour: %w", err)
	}
	f, err := control.File()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), envNeighbour+"=3")
	return againPlain(cmd), nil
}

// privateFiles gives the scratch host a resolver of its own, which asks the
// neighbour.
func privateFiles(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	path := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver "+NeighbourAddr+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(path, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount resolv.conf: %w", err)
	}
	// The user's own group is what an unprivileged namespace may name.
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644)
}

func startNeighbour() (*net.UnixConn, *exec.Cmd, error) {
	ours, theirs, err := seqpacketPair()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = theirs.Close() }()
	cmd := exec.Command("/proc/self/exe", argNeighbour)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the neighbour: %w", err)
	}
	return ours, cmd, nil
}

// cable connects the scratch host with its neighbour.
func cable(pid int, control *net.UnixConn) error {
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: hostLink, MTU: 1500},
		PeerName:  neighbourLink, PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := configure(hostLink, []string{HostAddr + "/24", HostAddr6 + "/64"}, []string{NeighbourAddr, NeighbourAddr6}); err != nil {
		return err
	}
	b, err := json.Marshal(request{Op: "configure", Network: neighbourLink, Addrs: []string{NeighbourAddr + "/24", NeighbourAddr6 + "/64"}})
	if err != nil {
		return err
	}
	if _, err := control.Write(b); err != nil {
		return err
	}
	return reply(control, nil)
}

// configure gives an interface its addresses and gateways, and takes it up,
// together with the loopback.
func configure(name string, addrs, gateways []string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	for _, g := range gateways {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(g)}); err != nil {
			return fmt.Errorf("add route through %s: %w", g, err)
		}
	}
	return nil
}

// Need skips a test where there is no scratch host, and returns its neighbour.
func Need(t testing.TB) *Sockets {
	t.Helper()
	if why := os.Getenv(envSkip); why != "" {
		t.Skip(why)
	}
	if err := netns.Check(); err != nil {
		t.Skip(err)
	}
	fd, err := strconv.Atoi(os.Getenv(envNeighbour))
	if err != nil {
		t.Fatal("this package's TestMain does not call nettest.Main")
	}
	s, err := theNeighbour(fd)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
