package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

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

// tapFrames carries frames over a tap. The tap comes with the VMM, later than
// the network: until then there is nobody to talk to.
type tapFrames struct {
	connected chan struct{}
	closed    chan struct{}
	closing   sync.Once

	mu  sync.Mutex
	tap *os.File
}

func newTapFrames() *tapFrames {
	return &tapFrames{connected: make(chan struct{}), closed: make(chan struct{})}
}

// connect takes over the tap of a VMM, the first and only one.
func (f *tapFrames) connect(tap *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.closed:
		return net.ErrClosed
	default:
	}
	if f.tap != nil {
		return errors.New("the network has a VMM already")
	}
	f.tap = tap
	close(f.connected)
	return nil
}

func (f *tapFrames) ReadFrame(b []byte) (int, error) {
	select {
	case <-f.connected:
	case <-f.closed:
		return 0, net.ErrClosed
	}
	raw, err := f.tap.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var header [vnetHeader]byte
	readErr := raw.Read(func(fd uintptr) bool {
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
	select {
	case <-f.connected:
	case <-f.closed:
		return net.ErrClosed
	default:
		return nil
	}
	raw, err := f.tap.SyscallConn()
	if err != nil {
		return err
	}
	var header [vnetHeader]byte
	iov := append([][]byte{header[:]}, parts...)
	return raw.Write(func(fd uintptr) bool {
		for {
			if _, err := unix.Writev(int(fd), iov); !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
}

func (f *tapFrames) Close() error {
	var err error
	f.closing.Do(func() {
		close(f.closed)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.tap != nil {
			err = f.tap.Close()
		}
	})
	return err
}

// connectTap prepares a network for a VMM that opens a tap by name, in the
// namespace in which the launcher starts it.
func (a *attachment) connectTap() error {
	carrier := newTapFrames()
	var err error
	if a.net, err = newNetstack(carrier, mtu, &a.cfg); err != nil {
		return err
	}
	a.vmm = vmm.Net{MAC: vmm.GuestMAC, MTU: mtu, Tap: network.TapName}
	a.launcher = launcher{carrier, a.cfg.Phase}
	return nil
}

// launcher starts a VMM in a namespace with a tap, and connects the tap.
type launcher struct {
	frames *tapFrames
	phase  vmm.Phase
}

// Launch implements vmm.Launcher.
func (l launcher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, uplink, err := netns.Launch(ctx, c, tap, l.phase.Begin("namespace"))
	if err != nil {
		return nil, err
	}
	if err := l.frames.connect(uplink); err != nil {
		_ = uplink.Close()
		_ = p.Signal(os.Kill)
		p.Wait()
		return nil, fmt.Errorf("connect the VMM to its network: %w", err)
	}
	return p, nil
}
