package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"

	"github.com/fcvm/fcvm/internal/network"
)

// learnedSets are the addresses of names in the namespace's rules.
type learnedSets struct {
	fd   int
	sets [2]*nftables.Set // IPv4, IPv6
	used [2]*nftables.Set // of them, those that the guest has connected to lately

	mu    sync.Mutex // of the rules
	known network.Learned
}

// usedFor is how long the rules remember that an address was used: for longer than
// expirePause.
const usedFor = 5 * time.Minute

// addLearned adds the sets, and the rules that let through what is in them.
func addLearned(c chains, fwd *nftables.Chain, tap exprs, fd int) (*learnedSets, error) {
	l := &learnedSets{fd: fd}
	for i, t := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		l.sets[i] = &nftables.Set{Table: c.table, Name: fmt.Sprintf("names%d", 4+2*i), KeyType: t}
		l.used[i] = &nftables.Set{
			Table: c.table, Name: fmt.Sprintf("used%d", 4+2*i), KeyType: t,
			Dynamic: true, HasTimeout: true, Timeout: usedFor,
		}
		for _, s := range []*nftables.Set{l.sets[i], l.used[i]} {
			if err := c.conn.AddSet(s, nil); err != nil {
				return nil, err
			}
		}
		c.add(fwd, tap, daddr.in(l.sets[i], i == 1), note(l.used[i]), accept())
	}
	return l, nil
}

// add is done when the rules have the addresses: the guest is told after.
func (l *learnedSets) add(addrs []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	added, removed := l.known.Add(addrs)
	l.change(added, removed)
}

func (l *learnedSets) change(added, removed []netip.Addr) {
	if len(added)+len(removed) == 0 {
		return
	}
	conn, err := nftables.New(nftables.WithNetNSFd(l.fd))
	if err != nil {
		return // the guest is refused what it asked for
	}
	for _, change := range []struct {
		addrs []netip.Addr
		do    func(*nftables.Set, []nftables.SetElement) error
	}{{removed, conn.SetDeleteElements}, {added, conn.SetAddElements}} {
		for _, a := range change.addrs {
			s := l.sets[0]
			if a.Is6() {
				s = l.sets[1]
			}
			if change.do(s, []nftables.SetElement{{Key: a.AsSlice()}}) != nil {
				return
			}
		}
	}
	_ = conn.Flush()
}

// listUsed lists the addresses that the guest has connected to lately.
func (l *learnedSets) listUsed() []netip.Addr {
	conn, err := nftables.New(nftables.WithNetNSFd(l.fd))
	if err != nil {
		return nil
	}
	var list []netip.Addr
	for _, s := range l.used {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return nil
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				list = append(list, a)
			}
		}
	}
	return list
}

// expire removes addresses that nobody has asked for, or used, lately, until ctx ends.
func (l *learnedSets) expire(ctx context.Context) {
	tick := time.NewTicker(expirePause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.mu.Lock()
			for _, a := range l.listUsed() {
				l.known.Use(a)
			}
			l.change(nil, l.known.Expire())
			l.mu.Unlock()
		}
	}
}
