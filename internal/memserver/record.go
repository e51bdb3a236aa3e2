package memserver

import (
	"sync"
	"time"
)

// Bounds of a recording.
const (
	recordTime  = 30 * time.Second // from the VM's first page on, when nobody says that it is ready
	recordBytes = 256 << 20        // a set that is larger is no working set
)

// recorder collects the pages that one VM asks for while it starts. It is safe
// for concurrent use.
type recorder struct {
	done  func(set bitmap) // called once; nil: there is no set
	ended chan struct{}    // closed when done has returned

	mu    sync.Mutex
	set   bitmap
	left  int // pages until it is full
	over  bool
	timer *time.Timer
}

func newRecorder(memory, page int64, done func(bitmap)) *recorder {
	r := &recorder{set: newBitmap(int(memory / page)), left: int(recordBytes / page), done: done, ended: make(chan struct{})}
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

// finish ends the recording: what there is, is the working set.
func (r *recorder) finish() { r.end(r.set) }

// abandon ends it with nothing, as when the VM did not live until it was ready.
func (r *recorder) abandon() { r.end(nil) }

// end returns when the recording has ended, by whoever was first.
func (r *recorder) end(set bitmap) {
	r.mu.Lock()
	first := !r.over
	r.over = true
	r.timer.Stop()
	r.mu.Unlock()
	if first {
		r.done(set)
		close(r.ended)
	}
	<-r.ended
}
