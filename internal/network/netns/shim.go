package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	tunDevice = "/dev/net/tun"
	// UplinkName is the other end of the VMM's tap.
	UplinkName = "up0"
	bridgeName = "br0"
)

// Main is the shim, when this process was started as one by Launch: then it
// does not return. Otherwise it does nothing.
func Main() {
	if len(os.Args) != 2 || os.Args[0] != shimName {
		return
	}
	// Capabilities and the parent-death signal belong to the thread.
	runtime.LockOSThread()
	var o order
	if err := json.Unmarshal([]byte(os.Args[1]), &o); err != nil || len(o.Argv) == 0 {
		fmt.Fprintln(os.Stderr, shimName+": not to be started by hand")
		os.Exit(2)
	}
	err := o.run()
	msg := []byte(err.Error())
	_ = unix.Sendto(o.Control, msg[:min(len(msg), maxMessage)], unix.MSG_NOSIGNAL, nil)
	os.Exit(1)
}

// run sets up the namespace and becomes the VMM. It returns with an error
// only.
func (o *order) run() error {
	unix.CloseOnExec(o.Control)
	uplink, err := setUp(o.Tap)
	if errors.Is(err, unix.EPERM) && o.UserNS {
		return fmt.Errorf("%w: %w: %s", ErrNamespace, err, userNamespaceHint)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNamespace, err)
	}
	if err := o.handOver(uplink); err != nil {
		return fmt.Errorf("hand the tap over: %w", err)
	}
	if o.Argv[0] == "" { // it was about the namespace
		os.Exit(0)
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	// Last, because changes of credentials clear it; and the parent may have
	// died before.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent-death signal: %w", err)
	}
	if os.Getppid() != o.Parent {
		return errors.New("the supervisor has gone")
	}
	return fmt.Errorf("execute %s: %w", o.Argv[0], syscall.Exec(o.Argv[0], o.Argv, os.Environ()))
}

// handOver sends the tap's other end, or that there is none to send.
func (o *order) handOver(uplink int) error {
	if uplink < 0 {
		return unix.Sendmsg(o.Control, []byte(noUplink), nil, nil, unix.MSG_NOSIGNAL)
	}
	if err := unix.Sendmsg(o.Control, []byte{0}, unix.UnixRights(uplink), nil, unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	return unix.Close(uplink)
}

// dropPrivileges leaves the VMM without what the shim had to have. The tap is
// its user's own.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	return nil
}

// setUp makes the taps and the bridge, and returns the uplink's descriptor.
func setUp(t Tap) (int, error) {
	if err := persistentTap(t.Name); err != nil {
		return -1, err
	}
	if t.Left {
		if err := persistentTap(UplinkName); err != nil {
			return -1, err
		}
		return -1, connect(t)
	}
	uplink, err := openTap(UplinkName)
	if err != nil {
		return -1, err
	}
	// Checksums may be unfinished and segments large: the reader does not mind.
	if err := unix.IoctlSetInt(uplink, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		_ = unix.Close(uplink)
		return -1, fmt.Errorf("set offloads of %s: %w", UplinkName, err)
	}
	if err := connect(t); err != nil {
		_ = unix.Close(uplink)
		return -1, err
	}
	return uplink, nil
}

// openTap makes a tap and returns its descriptor.
func openTap(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, fmt.Errorf("name tap %q: %w", name, err)
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make tap %s: %w", name, err)
	}
	return fd, nil
}

// persistentTap makes a tap that waits for the VMM to open it, which it can do
// without a capability because the tap is its user's.
func persistentTap(name string) error {
	fd, err := openTap(name)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, os.Geteuid()); err != nil {
		return fmt.Errorf("own tap %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep tap %s: %w", name, err)
	}
	return nil
}

// connect bridges the taps and takes all up.
func connect(t Tap) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = bridgeName
	off := false
	bridge.MulticastSnooping = &off // two ports: there is nothing to learn
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make a bridge (kernel module bridge): %w", err)
	}
	for _, name := range []string{t.Name, UplinkName} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find tap %s: %w", name, err)
		}
		if err := netlink.LinkSetMTU(l, t.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", name, t.MTU, err)
		}
		if err := netlink.LinkSetMaster(l, bridge); err != nil {
			return fmt.Errorf("bridge %s: %w", name, err)
		}
		// What comes in at one port goes out at the other. The kernel would remember
		// each address that a guest makes up, without a limit.
		if err := netlink.LinkSetLearning(l, false); err != nil {
			return fmt.Errorf("bridge %s without learning addresses: %w", name, err)
		}
		if err := up(l); err != nil {
			return err
		}
	}
	return up(bridge)
}

// up takes a link up that shall carry the guest's packets and none of its own.
func up(l netlink.Link) error {
	// No IPv6 in the kernel: no packets of it either.
	if err := netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("silence %s: %w", l.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("take %s up: %w", l.Attrs().Name, err)
	}
	return nil
}
