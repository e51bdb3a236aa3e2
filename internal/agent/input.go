package agent

import (
	"errors"
	"sync"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// errWindow: the host has sent more stdin than it may.
var errWindow = errors.New("more stdin than the window holds")

// ackStep is how much a process takes before the host hears of it, unless
// nothing else is waiting: a part of the window that keeps the host sending.
const ackStep = agentapi.StdinWindow / 4

// input is what is to be written to a process's stdin. The window bounds it,
// for each connection.
type input struct {
	mu     sync.Mutex
	more   sync.Cond
	chunks []chunk
	closed bool // the process is gone
	sum    int  // bytes taken of the last chunk's connection, not acknowledged
}

// chunk is one frame of input; no data means the end of it.
type chunk struct {
	data []byte
	from *attachment
}

func newInput() *input {
	q := new(input)
	q.more.L = &q.mu
	return q
}

// put keeps a copy of data; nil is the end of the input.
func (q *input) put(data []byte, from *attachment) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if from.unacked+len(data) > agentapi.StdinWindow {
		return errWindow
	}
	if q.closed {
		return nil
	}
	if data != nil {
		if len(data) == 0 {
			return nil
		}
		data = append([]byte(nil), data...)
	}
	from.unacked += len(data)
	q.chunks = append(q.chunks, chunk{data, from})
	q.more.Signal()
	return nil
}

// next waits for input; false: the process is gone.
func (q *input) next() (chunk, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.chunks) == 0 && !q.closed {
		q.more.Wait()
	}
	if q.closed {
		return chunk{}, false
	}
	c := q.chunks[0]
	q.chunks = q.chunks[1:]
	return c, true
}

// taken counts a chunk that the process has taken, and returns the number of
// bytes to acknowledge now: 0 while more is worth waiting for.
func (q *input) taken(c chunk) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sum += len(c.data)
	if q.sum < ackStep && len(q.chunks) > 0 && q.chunks[0].from == c.from && q.chunks[0].data != nil {
		return 0
	}
	n := q.sum
	q.sum = 0
	c.from.unacked -= n
	return n
}

// shut drops what the process has not taken.
func (q *input) shut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.chunks = true, nil
	q.more.Broadcast()
}
