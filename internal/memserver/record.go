package memserver

import (
	"slices"
	"sync"
	"time"
)

// Bounds of a recording.
const (
	recordTime  = 30 * time.Second // from the VM's first page on, when nobody says that it is ready
	recordAfter = 3 * time.Second  // from then on, for its first answer to somebody
	recordBytes = 256 << 20        // a set that is larger is no working set
)

// recorder collects the pages that one VM asks for while it starts. It is safe
// for concurrent use.
type recorder struct {
	keep  func(set bitmap) // called with the set, and again when it has become larger
	done  func()           // called once, after that
	ended chan struct{}    // closed when done has returned

	keeping sync.Mutex // one call of keep or done at a time; taken before mu

	mu    sync.Mutex
	set   bitmap
	left  int  // pages until it is full
	ready bool // the VM is; what there was then is kept
	over  bool
	timer *time.Timer
}

func newRecorder(memory, page int64, keep func(bitmap), done func()) *recorder {
	r := &recorder{set: newBitmap(int(memory / page)), left: int(recordBytes / page), keep: keep, done: done, ended: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timer = time.AfterFunc(recordTime, r.finish)
	return r
}

// add notes n pages from first on, and reports whether the recording goes on.
func (r *recorder) add(first, n int) bool {
	r.mu.Lock()
	for i := first; i < first+n && !r.over; i++ {
		if !r.set.has(i) {
			r.set.set(i)
			r.left--
		}
	}
	goesOn, full := !r.over && r.left > 0, !r.over && r.left <= 0
	r.mu.Unlock()
	if full {
		go r.finish() // not here: the VM waits for its page, and the set goes to a disk
	}
	return goesOn
}

// setReady says that the VM has started: what there is, is the working set. The
// recording goes on for a moment, for what the VM needs to answer whoever it was
// started for.
func (r *recorder) setReady() {
	r.keeping.Lock()
	defer r.keeping.Unlock()
	r.mu.Lock()
	if r.over || r.ready {
		r.mu.Unlock()
		return
	}
	r.ready = true
	set := slices.Clone(r.set)
	r.timer.Reset(recordAfter)
	r.mu.Unlock()
	r.keep(set)
}

// finish ends the recording: what there is, is the working set.
func (r *recorder) finish() { r.end(r.set) }

// abandon ends it with no more than what was kept, as when the VM has ended: it
// may not have been ready, and what it needs to stop is not what the next ones
// need to start.
func (r *recorder) abandon() { r.end(nil) }

// end returns when the recording has ended, by whoever was first.
func (r *recorder) end(set bitmap) {
	r.mu.Lock()
	first := !r.over
	r.over = true
	r.timer.Stop()
	r.mu.Unlock()
	if first {
		r.keeping.Lock()
		if set != nil {
			r.keep(set)
		}
		r.done()
		r.keeping.Unlock()
		close(r.ended)
	}
	<-r.ended
}
