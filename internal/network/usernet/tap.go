package usernet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
)

// vnetHeader is the size of the virtio-net header before each frame of a tap
// with IFF_VNET_HDR. What it says of unfinished checksums and large segments
// does not matter to a stack that ends the connection; and what the stack
// sends is finished, as a header of zeros says.
const vnetHeader = 10

// tap is the one that the VMM opens.
var tap = netns.Tap{Name: network.TapName, MTU: mtu}

// tapFrames carries frames over a tap, the other end of the VMM's.
type tapFrames struct {
	file *os.File
	raw  syscall.RawConn
}

func newTapFrames(file *os.File) (*tapFrames, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &tapFrames{file, raw}, nil
}

// ReadFrame fails when the VMM has ended, and its namespace with it.
func (f *tapFrames) ReadFrame(b []byte) (int, error) {
	var n int
	var err error
	var header [vnetHeader]byte
	readErr := f.raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Readv(int(fd), [][]byte{header[:], b}); !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if err := errors.Join(readErr, err); err != nil {
		return 0, err
	}
	return max(0, n-vnetHeader), nil
}

// WriteFrame drops a frame that the tap does not take, as a cable would.
func (f *tapFrames) WriteFrame(parts [][]byte) error {
	var header [vnetHeader]byte
	iov := append([][]byte{header[:]}, parts...)
	return f.raw.Write(func(fd uintptr) bool {
		for {
			if _, err := unix.Writev(int(fd), iov); !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
}

func (f *tapFrames) Close() error { return f.file.Close() }

// connectTap prepares a network for a VMM that opens a tap by name, in the
// namespace in which the launcher starts it.
func (a *attachment) connectTap() error {
	cable := newPlug()
	var err error
	if a.net, err = newNetstack(cable, mtu, &a.cfg); err != nil {
		return err
	}
	a.vmm = vmm.Net{MAC: vmm.GuestMAC, MTU: mtu, Tap: network.TapName}
	a.launcher = launcher{cable, a.cfg.Phase}
	return nil
}

// launcher starts a VMM in a namespace with a tap, and connects the tap.
type launcher struct {
	cable *plug
	phase vmm.Phase
}

// Launch implements vmm.Launcher.
func (l launcher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, uplink, err := netns.Launch(ctx, c, tap, l.phase.Begin("namespace"))
	if err != nil {
		return nil, err
	}
	f, err := newTapFrames(uplink)
	if err == nil {
		err = l.cable.put(f)
	}
	if err != nil {
		_ = uplink.Close()
		_ = p.Signal(os.Kill)
		p.Wait()
		return nil, fmt.Errorf("connect the VMM to its network: %w", err)
	}
	return p, nil
}
