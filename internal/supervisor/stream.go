package supervisor

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
)

const (
	// attachPause is how long is waited between tries to reach the agent again.
	attachPause = 5 * time.Millisecond

	// hangUpWindow is how long after a machine was saved its connections may
	// still be hung up by that: the guest, which does it, may be busy.
	hangUpWindow = time.Minute
)

// markSaved says that connections to the agent may be hung up from now on, if
// that is what the VMM does.
func (in *instance) markSaved() {
	if in.driver.Capabilities().SnapshotHangsUp {
		in.saved.Store(time.Now().UnixNano())
		in.agent.Close() // those that wait for the next request
	}
}

// hungUp reports whether a connection that was lost may have been lost because
// the machine was saved.
func (in *instance) hungUp() bool {
	at := in.saved.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < hangUpWindow
}

// insist does again what has failed because of a hang-up. Two tries of the same
// may both reach the agent.
func (in *instance) insist(ctx context.Context, f func() error) error {
	for {
		err := f()
		var said *agentapi.Error
		if err == nil || errors.As(err, &said) || ctx.Err() != nil || !in.hungUp() {
			return err
		}
		in.agent.Close()
		time.Sleep(attachPause)
	}
}

// runStream passes the container's streams on until it has ended. A VMM that
// hangs up connections when its machine is saved (Capabilities.SnapshotHangsUp)
// is no end of them.
func (in *instance) runStream(ctx context.Context) (agentapi.Exit, error) {
	stdin := newInput(in.Stdio.In)
	for {
		exit, err := in.attached().Run(ctx, agentclient.Stdio{
			Stdin: stdin.next(), Stdout: in.out, Stderr: in.err, Resize: in.Stdio.Resize,
		})
		if !errors.Is(err, agentclient.ErrLost) || !in.hungUp() {
			return exit, err
		}
		if aerr := in.attachAgain(ctx); aerr != nil {
			return exit, errors.Join(err, aerr)
		}
	}
}

// attachAgain takes the container's streams over from a connection that is gone.
func (in *instance) attachAgain(ctx context.Context) error {
	ctx, cancel := untilDone(ctx, in.machine, startTimeout)
	defer cancel()
	for {
		s, err := in.agent.Attach(ctx)
		if err == nil {
			in.setStream(s)
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(attachPause): // it may still stand still
		}
	}
}

// attached is the connection that carries the container's streams.
func (in *instance) attached() *agentclient.Stream {
	in.streaming.Lock()
	defer in.streaming.Unlock()
	return in.stream
}

func (in *instance) setStream(s *agentclient.Stream) {
	in.streaming.Lock()
	defer in.streaming.Unlock()
	in.stream = s
}

// input is a container's stdin, over all connections that carry it one after the
// other: what was read and not taken by one, the next one gets.
type input struct {
	once   sync.Once
	src    io.Reader
	chunks chan inputChunk

	mu   sync.Mutex
	left inputChunk
	end  chan struct{} // closed when the reader that is out is of no more use
}

type inputChunk struct {
	b   []byte
	err error
}

const inputSize = 32 << 10 // bytes that are read at once

func newInput(src io.Reader) *input { return &input{src: src, chunks: make(chan inputChunk)} }

// next returns a reader of what comes from now on, in place of the last one; nil
// when there is no input.
func (i *input) next() io.Reader {
	if i.src == nil {
		return nil
	}
	i.once.Do(func() { go i.pump() })
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.end != nil {
		close(i.end)
	}
	i.end = make(chan struct{})
	return &inputReader{i, i.end}
}

func (i *input) pump() {
	for {
		b := make([]byte, inputSize)
		n, err := i.src.Read(b)
		i.chunks <- inputChunk{b[:n], err}
		if err != nil {
			return
		}
	}
}

// inputReader is the reader of one connection.
type inputReader struct {
	*input
	end <-chan struct{}
}

func (r *inputReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.left.b) == 0 && r.left.err == nil {
		r.mu.Unlock()
		var c inputChunk
		select {
		case <-r.end:
			r.mu.Lock()
			return 0, io.ErrClosedPipe
		case c = <-r.chunks:
		}
		r.mu.Lock()
		r.left = c
	}
	select {
	case <-r.end: // it is the next one's
		return 0, io.ErrClosedPipe
	default:
	}
	n := copy(p, r.left.b)
	r.left.b = r.left.b[n:]
	if len(r.left.b) > 0 {
		return n, nil
	}
	return n, r.left.err
}
