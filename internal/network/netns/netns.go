// Package netns starts a VMM in a network namespace of its own, without root:
// the namespace has the tap that the VMM opens, and the other end of it is a
// descriptor that the supervisor holds.
//
// A Go program has threads and cannot enter a user namespace. So this program
// starts itself again as the namespaces' first process, a shim that sets up
// the namespace, hands the descriptor over and becomes the VMM by execve(2):
// the process that was started is the VMM's, it has the same id, the same
// descriptors and the same parent. The namespace has no name anywhere and goes
// with its last process.
//
//	supervisor ── descriptor of up0 ═ bridge ═ tap0 ── VMM
//
// A tap has one reader, and the VMM is it; a second tap, bridged with the
// first, is what the supervisor reads. Unlike a packet socket on the first
// one, it queues in the tap's own ring (net.core.rmem_max is room for three
// frames of 64 KiB), and the kernel takes care of offloads that only one side
// wants.
package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// ErrNamespace: the namespace cannot be made on this host.
var ErrNamespace = errors.New("cannot set up a network namespace")

// shimName is the shim's argv[0], by which Main knows itself.
const shimName = "fcvm-netns"

// noUplink is what the shim sends in place of a descriptor.
const noUplink = "\x00"

// maxMessage bounds what the shim sends.
const maxMessage = 4096

// Tap describes the namespace's tap.
type Tap struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"` // bytes
	// Left: the tap's other end, UplinkName, is left for another program to
	// open in the namespace. Launch returns no descriptor then.
	Left bool `json:"left,omitempty"`
}

// order is what the shim is to do. It is in its arguments, which everybody on
// the host can read, as the VMM's own arguments are.
type order struct {
	Control int      `json:"control"` // descriptor of the socket to this process
	Parent  int      `json:"parent"`  // id of this process
	UserNS  bool     `json:"user_ns"` // it was started in a user namespace
	Tap     Tap      `json:"tap"`
	Argv    []string `json:"argv"` // the VMM's, its path first; an empty path: there is none to become
}

// Check says why this host cannot make such a namespace, as far as can be
// known without trying; nil: nothing speaks against it.
func Check() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w: load the tun module and give your user read and write access to %s", ErrNamespace, err, tunDevice)
	}
	_ = f.Close()
	if Privileged() {
		return nil
	}
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err == nil && strings.TrimSpace(string(b)) == "0" {
		return fmt.Errorf("%w: user namespaces are switched off: set user.max_user_namespaces, or run as root", ErrNamespace)
	}
	return nil
}

// Probe makes such a namespace, which is gone when it returns, and says why this
// host cannot. It sees what Check does not: what security modules and filters of
// system calls refuse (AppArmor's restriction of user namespaces), and kernel
// modules that are missing.
func Probe(ctx context.Context, tap Tap) error {
	if err := Check(); err != nil {
		return err
	}
	tap.Left = true
	p, _, err := launchShim(ctx, vmm.Command{}, tap, func() {})
	if err != nil {
		return err
	}
	p.Wait()
	return nil
}

// Launch starts cmd in a new network namespace with a tap of this process's
// user, and returns the process and the descriptor of the tap's other end,
// which has virtio-net headers of 10 bytes (IFF_VNET_HDR) and is non-blocking.
// The process dies with this one. ctx bounds the start only. made is called when
// the namespace and its tap are there, and the process is about to become cmd.
//
// Main must be the first thing that this program's main function calls.
func Launch(ctx context.Context, c vmm.Command, tap Tap, made func()) (*launch.Process, *os.File, error) {
	p, uplink, err := launchShim(ctx, c, tap, made)
	if err != nil {
		return nil, nil, fmt.Errorf("start %s in a network namespace: %w", c.Path, err)
	}
	return p, uplink, nil
}

func launchShim(ctx context.Context, c vmm.Command, tap Tap, made func()) (*launch.Process, *os.File, error) {
	if os.Args[0] == shimName {
		return nil, nil, errors.New("this program does not call netns.Main first")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer func() { _ = theirs.Close() }()
	file, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, nil, err
	}
	control := file.(*net.UnixConn)
	defer func() { _ = control.Close() }()

	p, err := startShim(ctx, c, tap, theirs)
	if err != nil {
		return nil, nil, err
	}
	_ = theirs.Close() // so that the shim's end is the last, and its end is seen
	uplink, err := await(ctx, control, made)
	if err != nil {
		_ = p.Signal(syscall.SIGKILL)
		p.Wait()
		return nil, nil, err
	}
	return p, uplink, nil
}

func startShim(ctx context.Context, c vmm.Command, tap Tap, control *os.File) (*launch.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := order{
		Control: 3 + len(c.Extra), // the first behind the VMM's own
		Parent:  os.Getpid(), UserNS: !Privileged(), Tap: tap, Argv: append([]string{c.Path}, c.Args...),
	}
	arg, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := launch.Cmd(c)
	cmd.Path, cmd.Args = "/proc/self/exe", []string{shimName, string(arg)}
	cmd.ExtraFiles = append(append([]*os.File{}, c.Extra...), control)
	attr := launch.Attr(c)
	attr.Cloneflags = syscall.CLONE_NEWNET
	if o.UserNS {
		// The user keeps its id, and the files it can open; the ambient
		// capability is the one thing that the shim needs to keep over its
		// own execve.
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
	}
	p, err := launch.StartBy(cmd, attr, c.Seccomp, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: %s", ErrNamespace, err, userNamespaceHint)
	}
	return p, nil
}

const userNamespaceHint = "the host may forbid user namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces); or run as root"

// await receives the tap's other end, and then waits until the shim has become
// the VMM, which closes its end of the socket.
func await(ctx context.Context, control *net.UnixConn, made func()) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var uplink *os.File
	ready := false
	fail := func(err error) (*os.File, error) {
		if uplink != nil {
			_ = uplink.Close()
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	for {
		msg, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := control.ReadMsgUnix(msg, oob)
		ended := errors.Is(err, io.EOF) || err == nil && n == 0
		switch {
		case ended && ready:
			return uplink, nil
		case ended:
			return fail(errors.New("it ended before the network was there"))
		case err != nil:
			return fail(err)
		case oobn == 0 && string(msg[:n]) == noUplink:
			ready = true
			made()
			continue
		case oobn == 0:
			return fail(errors.New(string(msg[:n])))
		}
		if uplink, err = receivedFile(oob[:oobn]); err != nil {
			return fail(err)
		}
		ready = true
		made()
	}
}

// receivedFile takes the one descriptor out of a control message.
func receivedFile(oob []byte) (*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receive the tap's descriptor: %d messages, %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the tap's descriptor: %d of them, %w", len(fds), err)
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "uplink"), nil
}

// Privileged reports whether this process may make network namespaces as it
// is. A user namespace would be in root's way: there it could not even enter
// the directories of other users.
func Privileged() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if mask, found := strings.CutPrefix(line, "CapEff:"); found {
			caps, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			need := uint64(1)<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
			return err == nil && caps&need == need
		}
	}
	return false
}
