package usernet

import (
	"net/netip"

	"github.com/fcvm/fcvm/internal/network"
)

// gate decides where the guest may connect to.
type gate struct {
	egress  network.Egress
	learned network.Learned
}

func newGate(e network.Egress) *gate { return &gate{egress: e} }

// allows reports whether the guest may send to an address as it sees it.
func (g *gate) allows(a netip.Addr) bool {
	if a == gatewayAddr {
		return g.egress.AllowsHost()
	}
	return g.egress.AllowsAddr(a) || g.learned.Use(a)
}

// learn lets the addresses of a name through that the policy allows. A name's
// owner must not open this link, or what is the host's own.
func (g *gate) learn(addrs []netip.Addr) {
	if !g.egress.Restricted {
		return
	}
	addrs, err := network.NotOwn(addrs)
	if err != nil {
		return
	}
	var outside []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() && !guestPrefix.Contains(a) {
			outside = append(outside, a)
		}
	}
	g.learned.Add(outside)
}
