package network

import (
	"net/netip"
	"sync"
	"time"
)

// Addresses that names stand for are let through for as long as programs
// usually keep them, from the last answer or use on.
const (
	learnedFor = time.Hour
	// MaxLearned bounds how many there are; the one that is the longest
	// without an answer or use makes room.
	MaxLearned = 4096
)

// Learned are addresses that names of an egress policy stand for. The zero
// value is ready. It is safe for concurrent use.
type Learned struct {
	mu    sync.Mutex
	until map[netip.Addr]time.Time
}

// Add adds addresses; those that no packet can be sent to are left out. It
// returns what is new, and what made room.
func (l *Learned) Add(addrs []netip.Addr) (added, removed []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = make(map[netip.Addr]time.Time)
	}
	for _, a := range addrs {
		a = a.Unmap()
		if !Routable(a) {
			continue
		}
		if _, known := l.until[a]; !known {
			if len(l.until) >= MaxLearned {
				removed = append(removed, l.forgetOldest())
			}
			added = append(added, a)
		}
		l.until[a] = time.Now().Add(learnedFor)
	}
	return added, removed
}

func (l *Learned) forgetOldest() netip.Addr {
	var oldest netip.Addr
	for a, until := range l.until {
		if !oldest.IsValid() || until.Before(l.until[oldest]) {
			oldest = a
		}
	}
	delete(l.until, oldest)
	return oldest
}

// Use reports whether an address was added, and has not expired. It is used by that.
func (l *Learned) Use(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a = a.Unmap()
	until, ok := l.until[a]
	if now := time.Now(); ok && now.Before(until) {
		l.until[a] = now.Add(learnedFor)
		return true
	}
	return false
}

// Expire forgets what has expired, and returns it.
func (l *Learned) Expire() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone []netip.Addr
	for a, until := range l.until {
		if !time.Now().Before(until) {
			gone = append(gone, a)
			delete(l.until, a)
		}
	}
	return gone
}
