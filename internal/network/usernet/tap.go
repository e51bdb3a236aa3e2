package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
)

// vnetHeader is the virtio-net header before each frame of a tap with IFF_VNET_HDR
// (linux/virtio_net.h, virtio_net_hdr). What it says of unfinished checksums and
// large segments does not matter to a stack that ends the connection. One of zeros
// says that nothing is left to be done.
type vnetHeader [10]byte

// leaveChecksum is the header of a packet that the stack sends. The checksum of TCP
// is left to whoever looks at it, which is nobody if the guest takes it so; UDP goes
// without one.
func leaveChecksum(pkt *stack.PacketBuffer) (h vnetHeader) {
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber {
		return h
	}
	ip, tcp := header.IPv4(pkt.NetworkHeader().Slice()), header.TCP(pkt.TransportHeader().Slice())
	tcp.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength()))
	h[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(h[6:], uint16(header.EthernetMinimumSize+len(ip))) // where the sum begins
	binary.NativeEndian.PutUint16(h[8:], header.TCPChecksumOffset)                   // where it belongs
	return h
}

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
	var h vnetHeader
	readErr := f.raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Readv(int(fd), [][]byte{h[:], b}); !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if err := errors.Join(readErr, err); err != nil {
		return 0, err
	}
	return max(0, n-len(h)), nil
}

// WriteFrame drops a frame that the tap does not take, as a cable would. The first
// part is a vnetHeader.
func (f *tapFrames) WriteFrame(parts [][]byte) error {
	return f.raw.Write(func(fd uintptr) bool {
		for {
			if _, err := unix.Writev(int(fd), parts); !errors.Is(err, unix.EINTR) {
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
	if a.net, err = newNetstack(&link{frames: cable, vnet: true}, &a.cfg); err != nil {
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
