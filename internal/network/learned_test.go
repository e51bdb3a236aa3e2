package network

import (
	"net/netip"
	"testing"
	"time"
)

func TestLearned(t *testing.T) {
	var l Learned
	first := netip.MustParseAddr("192.0.2.1")
	if added, _ := l.Add([]netip.Addr{first, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:192.0.2.1")}); len(added) != 1 || added[0] != first {
		t.Errorf("added %v", added)
	}
	if added, _ := l.Add([]netip.Addr{first}); len(added) != 0 || !l.Use(first) {
		t.Errorf("added twice: %v", added)
	}
	var removed []netip.Addr
	for i := range MaxLearned {
		_, r := l.Add([]netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})})
		removed = append(removed, r...)
	}
	if len(removed) != 1 || removed[0] != first || l.Use(first) {
		t.Errorf("removed %v, want the oldest, %s", removed, first)
	}
	l.until[netip.AddrFrom4([4]byte{198, 18, 0, 0})] = l.until[first]
	if gone := l.Expire(); len(gone) != 1 {
		t.Errorf("%d have expired, want 1", len(gone))
	}
	used, late := netip.AddrFrom4([4]byte{198, 18, 0, 1}), netip.AddrFrom4([4]byte{198, 18, 0, 2})
	l.until[used], l.until[late] = time.Now().Add(time.Minute), time.Now()
	if !l.Use(used) || time.Until(l.until[used]) < learnedFor-time.Minute {
		t.Error("an address that is used expires")
	}
	if l.Use(late) {
		t.Error("an address has come back by its use")
	}
}
