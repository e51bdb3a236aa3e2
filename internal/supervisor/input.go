package supervisor

import (
	"io"
	"sync"

	"github.com/fcvm/fcvm/internal/agentclient"
)

// inputChunk is how much of stdin is read at a time, bytes.
const inputChunk = 32 << 10

// input hands stdin, and the size of its terminal, from one start of the container
// to the next: what is typed after one has ended is the next one's.
type input struct {
	from  io.Reader
	sizes <-chan agentclient.Size
	begin sync.Once

	chunks chan []byte // closed at stdin's end, or with err
	err    error

	mu   sync.Mutex
	rest []byte // of a chunk
	size *agentclient.Size
	to   chan agentclient.Size // of the start that is under way
}

func newInput(s Stdio) *input {
	return &input{from: s.In, sizes: s.Resize, chunks: make(chan []byte)}
}

// until returns what one start gets: stdin up to over, which then ends, and the
// terminal's sizes, the one that it has at once. Both are nil where there is none.
func (i *input) until(over <-chan struct{}) (io.Reader, <-chan agentclient.Size) {
	i.begin.Do(func() {
		if i.from != nil {
			go i.read()
		}
		if i.sizes != nil {
			go i.resize()
		}
	})
	var r io.Reader
	if i.from != nil {
		r = &turn{i, over}
	}
	if i.sizes == nil {
		return r, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.to = make(chan agentclient.Size, 1)
	if i.size != nil {
		i.to <- *i.size
	}
	return r, i.to
}

func (i *input) read() {
	defer close(i.chunks)
	for {
		b := make([]byte, inputChunk)
		n, err := i.from.Read(b)
		if n > 0 {
			i.chunks <- b[:n]
		}
		if err != nil {
			i.err = err
			return
		}
	}
}

func (i *input) resize() {
	for s := range i.sizes {
		i.mu.Lock()
		i.size = &s
		if i.to != nil {
			select {
			case <-i.to: // one that nobody has looked at yet
			default:
			}
			i.to <- s
		}
		i.mu.Unlock()
	}
}

// turn is stdin for one start.
type turn struct {
	input *input
	over  <-chan struct{}
}

// Read implements io.Reader.
func (t *turn) Read(p []byte) (int, error) {
	t.input.mu.Lock()
	n := copy(p, t.input.rest)
	t.input.rest = t.input.rest[n:]
	t.input.mu.Unlock()
	if n > 0 {
		return n, nil
	}
	select {
	case <-t.over:
		return 0, io.EOF
	default:
	}
	select {
	case b, more := <-t.input.chunks:
		if !more {
			return 0, t.input.err
		}
		n := copy(p, b)
		t.input.mu.Lock()
		t.input.rest = b[n:]
		t.input.mu.Unlock()
		return n, nil
	case <-t.over:
		return 0, io.EOF
	}
}
