package usernet

import (
	"net"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm"
)

// heldFrames are frames that a guest sends one after the other.
type heldFrames struct {
	frames
	left [][]byte
}

func (h *heldFrames) ReadFrame(b []byte) (int, error) {
	if len(h.left) == 0 {
		return 0, net.ErrClosed
	}
	n := copy(b, h.left[0])
	h.left = h.left[1:]
	return n, nil
}

// keeper is a stack that keeps all that it is given.
type keeper struct {
	stack.NetworkDispatcher
	capacities []int
	sizes      []int
}

func (k *keeper) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	b := pkt.ToBuffer()
	list := b.AsViewList()
	k.capacities, k.sizes = append(k.capacities, list.Front().Capacity()), append(k.sizes, int(b.Size()))
}

// What waits in the stack takes little more memory than it has bytes: a guest may
// have it keep very many small frames.
func TestFramesTakeTheirSize(t *testing.T) {
	h, k := &heldFrames{}, &keeper{}
	sizes := []int{20, 1000, largeFrame - 20, largeFrame, mtu}
	for _, n := range sizes {
		payload := make([]byte, n)
		payload[0] = 0x45
		h.left = append(h.left, frame(network.GatewayMAC, vmm.GuestMAC, 0x0800, payload...))
	}
	l := &link{frames: h, dispatcher: k}
	l.mac, _ = linkAddress(network.GatewayMAC)
	l.guest, _ = linkAddress(vmm.GuestMAC)
	l.serve()
	if len(k.sizes) != len(sizes) {
		t.Fatalf("%d of %d frames came", len(k.sizes), len(sizes))
	}
	for i, n := range sizes {
		if k.sizes[i] != n || k.capacities[i] > max(64, 2*n) {
			t.Errorf("%d bytes came as %d, in memory of %d", n, k.sizes[i], k.capacities[i])
		}
	}
}
