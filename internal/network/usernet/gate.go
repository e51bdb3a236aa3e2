package usernet

import (
	"net/netip"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/network"
)

// Addresses that names stand for are let through for as long as programs
// usually keep them, from the last answer on.
const (
	learnedFor = time.Hour
	maxLearned = 4096 // addresses; the one that is the longest without an answer makes room
)

// gate decides where the guest may connect to.
type gate struct {
	egress network.Egress

	mu      sync.Mutex
	learned map[netip.Addr]time.Time // until when
}

func newGate(e network.Egress) *gate {
	return &gate{egress: e, learned: make(map[netip.Addr]time.Time)}
}

// allows reports whether the guest may send to an address as it sees it.
func (g *gate) allows(a netip.Addr) bool {
	if g.egress.AllowsAddr(a) || a == gatewayAddr && g.egress.AllowsHost() {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.learned[a]
	return ok && time.Now().Before(until)
}

// learn lets the addresses of a name through that the policy allows. A name's
// owner must not open this link, or what is the host's own.
func (g *gate) learn(addrs []netip.Addr) {
	if !g.egress.Restricted {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range addrs {
		if a = a.Unmap(); !a.Is4() || guestPrefix.Contains(a) || !network.Routable(a) {
			continue
		}
		if _, known := g.learned[a]; !known && len(g.learned) >= maxLearned {
			g.forgetOldest()
		}
		g.learned[a] = time.Now().Add(learnedFor)
	}
}

func (g *gate) forgetOldest() {
	var oldest netip.Addr
	for a, until := range g.learned {
		if !oldest.IsValid() || until.Before(g.learned[oldest]) {
			oldest = a
		}
	}
	delete(g.learned, oldest)
}
