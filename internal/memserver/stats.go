package memserver

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Stats is what a server has to say of itself.
type Stats struct {
	Snapshot    string    `json:"snapshot"`
	Socket      string    `json:"socket"`
	PID         int       `json:"pid"`
	Started     time.Time `json:"started"`
	Prefetch    bool      `json:"prefetch"`
	FaultAround int       `json:"fault_around"` // bytes
	Keep        bool      `json:"keep"`
	MemorySize  int64     `json:"memory_size"` // bytes
	// WorkingSet is the number of pages in the recorded set; 0: there is none.
	WorkingSet int       `json:"working_set_pages"`
	Recording  bool      `json:"recording"` // the set is being recorded
	VMs        []VMStats `json:"vms"`
	Ended      []VMStats `json:"ended"` // the last ones, at most 64
}

// VMStats is what was done for one VM. Pages are of PageSize bytes each.
type VMStats struct {
	VM        string     `json:"vm,omitempty"` // as its supervisor has said
	PID       int        `json:"pid"`          // of the VMM
	Connected time.Time  `json:"connected"`
	Ended     *time.Time `json:"ended,omitempty"`
	Reason    string     `json:"reason,omitempty"` // why the server has ended it
	PageSize  int        `json:"page_size"`        // bytes

	Faults  uint64 `json:"faults"`        // pages that the VM has asked for
	Around  uint64 `json:"around_pages"`  // delivered since a neighbour was asked for
	Pushed  uint64 `json:"pushed_pages"`  // delivered ahead, of the working set
	Zero    uint64 `json:"zero_pages"`    // of all that was delivered, those that cost no memory; never huge ones
	Removed uint64 `json:"removed_pages"` // given back by the VM, as to a balloon

	// Held and HeldUsed are a sample: one in 64 pages of the working set, of a large
	// one about 16, chosen at random, is held back, and used if the VM asks for it.
	// Nothing on the host can tell whether a page that was pushed is used.
	Held     uint64 `json:"held_pages"`
	HeldUsed uint64 `json:"held_pages_used"`
	// PushedUsed is the estimate that follows: as many of the pushed pages as of
	// the sample. Missing without a sample.
	PushedUsed *uint64 `json:"pushed_pages_used,omitempty"`
	// PushMicros is how long the push took, from its first page to its last,
	// demand faults in between included; 0 while it goes on.
	PushMicros int64 `json:"push_us,omitempty"`

	// From the moment that the server has read a fault until its page is there.
	P50Micros float64 `json:"fault_us_p50"`
	P99Micros float64 `json:"fault_us_p99"`
	MaxMicros float64 `json:"fault_us_max"`
}

// Name is how messages call the VM.
func (v VMStats) Name() string {
	if v.VM != "" {
		return v.VM
	}
	return fmt.Sprintf("process %d", v.PID)
}

// String is one line.
func (v VMStats) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d faults (p50 %.0f µs, p99 %.0f µs), %d pages around them, %d pushed",
		v.Name(), v.Faults, v.P50Micros, v.P99Micros, v.Around, v.Pushed)
	if v.PushedUsed != nil {
		fmt.Fprintf(&b, " (about %d of them used)", *v.PushedUsed)
	}
	fmt.Fprintf(&b, ", %d of zeros, %d removed", v.Zero, v.Removed)
	return b.String()
}

// estimate fills in what follows from the sample.
func (v *VMStats) estimate() {
	if v.Held > 0 {
		n := v.Pushed * v.HeldUsed / v.Held
		v.PushedUsed = &n
	}
}

// histogram counts durations in buckets of at most 1/16 of their value each.
type histogram struct {
	counts [64 * subBuckets]uint32
	n      uint64
	max    time.Duration
}

const (
	subBits    = 4
	subBuckets = 1 << subBits
)

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(uint64(max(d, 0)))]++
	h.n++
	h.max = max(h.max, d)
}

func bucket(ns uint64) int {
	if ns < subBuckets {
		return int(ns)
	}
	exp := bits.Len64(ns) - 1 - subBits
	return (exp+1)<<subBits | int(ns>>exp)&(subBuckets-1)
}

// middle is of a bucket's durations.
func middle(b int) time.Duration {
	if b < subBuckets {
		return time.Duration(b)
	}
	exp := b>>subBits - 1
	low := uint64(subBuckets|b&(subBuckets-1)) << exp
	return time.Duration(low + 1<<exp/2)
}

// quantile is the duration that a share q of all do not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	var seen uint64
	for b, n := range h.counts {
		if seen += uint64(n); seen > rank {
			return min(middle(b), h.max)
		}
	}
	return h.max
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
