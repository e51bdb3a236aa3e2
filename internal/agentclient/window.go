package agentclient

import (
	"fmt"
	"sync"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// window counts the bytes that may still be sent before the guest
// acknowledges some.
type window struct {
	mu   sync.Mutex
	more sync.Cond
	size int
	room int
	over bool
}

func newWindow(size int) *window {
	w := &window{size: size, room: size}
	w.more.L = &w.mu
	return w
}

// take waits for room for n bytes; false: the stream is over.
func (w *window) take(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.room < n && !w.over {
		w.more.Wait()
	}
	w.room -= n
	return !w.over
}

// give makes room. A guest that acknowledges more than it got is refused.
func (w *window) give(n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.room+n > w.size {
		return fmt.Errorf("%w: more stdin acknowledged than was sent", agentapi.ErrFrame)
	}
	w.room += n
	w.more.Signal()
	return nil
}

func (w *window) shut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.more.Broadcast()
}
