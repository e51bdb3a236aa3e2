package hostport

import (
	"sync"
	"sync/atomic"
	"time"
)

// Flows bound how many associations of UDP there are: one more than that ends the
// one that is idle for the longest.
type Flows struct {
	limit int

	mu   sync.Mutex
	open map[*Flow]struct{}
}

// Flow is one association.
type Flow struct {
	flows *Flows
	end   func()
	last  atomic.Int64 // when a datagram came, either way
}

// NewFlows allows so many at a time.
func NewFlows(limit int) *Flows { return &Flows{limit: limit, open: make(map[*Flow]struct{})} }

// Begin counts one more, until its Done. end is called if it has to make room.
func (f *Flows) Begin(end func()) *Flow {
	n := &Flow{flows: f, end: end}
	n.touch()
	if evicted := f.add(n); evicted != nil {
		evicted.end()
	}
	return n
}

func (f *Flows) add(n *Flow) (evicted *Flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.open) >= f.limit {
		for o := range f.open {
			if evicted == nil || o.last.Load() < evicted.last.Load() {
				evicted = o
			}
		}
		delete(f.open, evicted)
	}
	f.open[n] = struct{}{}
	return evicted
}

// Done counts one less. To call it twice is no error.
func (n *Flow) Done() {
	n.flows.mu.Lock()
	defer n.flows.mu.Unlock()
	delete(n.flows.open, n)
}

func (n *Flow) touch() { n.last.Store(time.Now().UnixNano()) }

// expires is when a flow will have been idle for so long.
func (n *Flow) expires(idle time.Duration) time.Time { return time.Unix(0, n.last.Load()).Add(idle) }
