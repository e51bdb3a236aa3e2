package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

const (
	maxLine    = 1 << 20 // bytes of one QMP message
	qmpTimeout = 30 * time.Second
)

// errQMP: QEMU refused a command or broke the protocol.
var errQMP = errors.New("QMP")

// qmp is a client of the QEMU Machine Protocol:
// https://www.qemu.org/docs/master/interop/qmp-spec.html
// One command is under way at a time.
type qmp struct {
	conn    io.ReadWriteCloser
	version version // of QEMU, as it greets
	// event is told of events, one after the other, while no answer is read.
	// What most of them tell shows in the process's end or in a command's answer.
	event func(name string, data json.RawMessage)

	mu      sync.Mutex // one command at a time
	nextID  uint64
	replies chan reply
	failed  chan struct{} // closed when the connection is of no more use
	err     error         // why, once failed is closed
}

type reply struct {
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"` // of an event
	Greeting *struct {
		Version struct {
			QEMU version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
}

// newQMP reads the greeting and leaves the negotiation. It owns conn.
func newQMP(ctx context.Context, conn io.ReadWriteCloser, event func(name string, data json.RawMessage)) (*qmp, error) {
	q := &qmp{conn: conn, event: event, replies: make(chan reply, 1), failed: make(chan struct{})}
	greeted := make(chan struct{})
	go q.read(greeted)
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	select {
	case <-greeted:
	case <-q.failed:
		return nil, q.err
	case <-ctx.Done():
		_ = conn.Close()
		return nil, fmt.Errorf("%w: no greeting: %w", errQMP, context.Cause(ctx))
	}
	if err := q.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) read(greeted chan<- struct{}) {
	s := bufio.NewScanner(q.conn)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		var r reply
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			q.fail(fmt.Errorf("%w: %w", errQMP, err))
			return
		}
		switch {
		case r.Greeting != nil && greeted != nil:
			q.version = r.Greeting.Version.QEMU
			close(greeted)
			greeted = nil
		case r.Event != "":
			q.event(r.Event, r.Data)
		case r.ID != nil:
			select {
			case <-q.replies: // of a command that was given up
			default:
			}
			q.replies <- r
		}
	}
	q.fail(fmt.Errorf("%w: %w", vmm.ErrExited, errors.Join(s.Err(), io.EOF)))
}

func (q *qmp) fail(err error) {
	q.err = err
	close(q.failed)
	_ = q.conn.Close()
}

// execute runs one command; args and out may be nil.
func (q *qmp) execute(ctx context.Context, command string, args, out any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.nextID++
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, q.nextID})
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %s: %w", vmm.ErrExited, command, err)
	}
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	for {
		select {
		case r := <-q.replies:
			if *r.ID != q.nextID {
				continue // of a command that was given up
			}
			if r.Error != nil {
				return fmt.Errorf("%w: %s: %s", errQMP, command, r.Error.Desc)
			}
			if out == nil {
				return nil
			}
			if err := json.Unmarshal(r.Return, out); err != nil {
				return fmt.Errorf("%w: the answer to %s: %w", errQMP, command, err)
			}
			return nil
		case <-q.failed:
			return fmt.Errorf("%s: %w", command, q.err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %s: %w", errQMP, command, context.Cause(ctx))
		}
	}
}

func (q *qmp) Close() error { return q.conn.Close() }
