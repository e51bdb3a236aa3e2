package memserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrGone: there is no server, or not any more.
var ErrGone = errors.New("the snapshot's memory server is gone")

// ErrEnded: the server has ended the VM. The error's text says why.
var ErrEnded = errors.New("the VM was ended by its memory server")

// Link is a supervisor's connection to the server of its VM's memory. A
// supervisor opens it before it restores the VM, keeps it until the VM's end,
// and ends the VM when the link ends: without its server it cannot go on.
// It is safe for concurrent use.
type Link struct {
	conn *net.UnixConn
	done chan struct{}
	err  error // once done is closed

	mu sync.Mutex // one line at a time
}

// OpenLink connects to the server at socket on behalf of the VM of an id. An
// error that wraps ErrGone says that nobody serves there, or is about to stop. It
// waits ten seconds for the answer.
func OpenLink(ctx context.Context, socket, vm string) (*Link, error) {
	ctx, cancel := patiently(ctx)
	defer cancel()
	c, lines, err := ask(ctx, socket, request{Request: requestLink, VM: vm})
	if err != nil {
		return nil, err
	}
	l := &Link{conn: c, done: make(chan struct{})}
	go l.listen(lines)
	return l, nil
}

// answerTime is how long a server may take to answer. One that is stopped never does.
const answerTime = 10 * time.Second

func patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, answerTime, fmt.Errorf("it has not answered within %s", answerTime))
}

// ask connects, says q and hears that it was understood.
func ask(ctx context.Context, socket string, q request) (*net.UnixConn, *bufio.Reader, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	c := conn.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	lines := bufio.NewReader(c)
	if err = say(c, q); err == nil && q.Request == requestLink {
		_, err = hear(lines, maxLine)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = c.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, err
	}
	return c, lines, nil
}

func say(c *net.UnixConn, q request) error {
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	if _, err = c.Write(append(b, '\n')); err != nil {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// hear reads a line of at most limit bytes.
func hear(r *bufio.Reader, limit int) (answer, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > limit:
			return answer{}, fmt.Errorf("the memory server's answer has more than %d bytes", limit)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			if errors.Is(err, io.EOF) {
				return answer{}, ErrGone
			}
			return answer{}, fmt.Errorf("%w: %w", ErrGone, err)
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			return answer{}, fmt.Errorf("understand the memory server: %w", err)
		}
		if a.Error != "" {
			return answer{}, fmt.Errorf("the memory server refuses: %s", a.Error)
		}
		return a, nil
	}
}

func (l *Link) listen(lines *bufio.Reader) {
	defer close(l.done)
	for {
		a, err := hear(lines, maxLine)
		if err != nil {
			l.err = err
			return
		}
		if a.Ended != "" {
			l.err = fmt.Errorf("%w: %s", ErrEnded, a.Ended)
			return
		}
	}
}

// Attach says which process is the VM's VMM, once that is known. If the server
// has ended it already, the link ends.
func (l *Link) Attach(pid int) error { return l.say(request{PID: pid}) }

// Ready says that the VM has started. If its working set is recorded, that is
// kept, and the recording ends a moment later.
func (l *Link) Ready() error { return l.say(request{Ready: true}) }

func (l *Link) say(q request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(handshakeTime))
	return say(l.conn, q)
}

// Done is closed when the server has ended the VM, or is gone, or the link was
// closed. The server says why it ends a VM before it does so: a supervisor
// whose VMM was killed looks here for a moment, before it reports that.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err says why Done is closed, by an error that wraps ErrEnded or ErrGone. It
// waits for that.
func (l *Link) Err() error { <-l.done; return l.err }

// Close ends the link. The server goes on serving the VM.
func (l *Link) Close() error {
	err := l.conn.Close()
	<-l.done
	return err
}

// Query asks the server at socket for its statistics. An error that wraps
// ErrGone says that nobody serves there. It waits ten seconds for the answer.
func Query(ctx context.Context, socket string) (Stats, error) {
	ctx, cancel := patiently(ctx)
	defer cancel()
	c, lines, err := ask(ctx, socket, request{Request: requestStats})
	if err != nil {
		return Stats{}, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	a, err := hear(lines, maxAnswer)
	switch {
	case ctx.Err() != nil:
		return Stats{}, context.Cause(ctx)
	case err != nil:
		return Stats{}, err
	case a.Stats == nil:
		return Stats{}, errors.New("the memory server answers without statistics")
	}
	return *a.Stats, nil
}
