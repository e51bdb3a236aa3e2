package agentclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// ErrLost: the connection ended before the process did.
var ErrLost = errors.New("connection to the guest was lost")

// Size is a terminal's.
type Size struct{ Rows, Cols uint16 }

// Stdio is what a stream is joined to. Nil writers discard; a nil Stdin is
// an empty one.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// Stream is the stdio of one process in the guest. Run is called once; Signal
// and Close at any time.
type Stream struct {
	conn net.Conn
	r    io.Reader

	mu sync.Mutex // frames are written whole
}

// Attach joins the container's stdio. It may come before Start.
func (c *Client) Attach(ctx context.Context) (*Stream, error) {
	return c.upgrade(ctx, agentapi.PathAttach, nil)
}

// Exec runs a command in the guest.
func (c *Client) Exec(ctx context.Context, req agentapi.ExecRequest) (*Stream, error) {
	return c.upgrade(ctx, agentapi.PathExec, req)
}

func (c *Client) upgrade(ctx context.Context, path string, in any) (*Stream, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the guest agent: %w", err)
	}
	s, err := handshake(ctx, conn, path, in)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func handshake(ctx context.Context, conn net.Conn, path string, in any) (*Stream, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", agentapi.StreamProtocol)
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask the guest agent: %w", err)
	}
	// The limit holds for the handshake only; frames have their own.
	limited := &io.LimitedReader{R: conn, N: agentapi.MaxBody}
	br := bufio.NewReader(limited)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, fmt.Errorf("read the guest agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		return nil, refusal(resp.Status, b)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	early, err := br.Peek(br.Buffered())
	if err != nil {
		return nil, err
	}
	return &Stream{conn: conn, r: io.MultiReader(bytes.NewReader(early), conn)}, nil
}

// Run joins the stream to stdio until the process has ended, and returns how.
// When ctx ends, or the connection, the error says so (ErrLost). A read of
// Stdin that is blocked does not keep Run from returning.
func (s *Stream) Run(ctx context.Context, stdio Stdio) (agentapi.Exit, error) {
	defer func() { _ = s.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	done := make(chan struct{})
	defer close(done)
	go s.sendInput(stdio.Stdin)
	go s.sendSizes(stdio.Resize, done)
	return s.receive(ctx, stdio)
}

func (s *Stream) receive(ctx context.Context, stdio Stdio) (agentapi.Exit, error) {
	r := agentapi.NewFrameReader(bufio.NewReaderSize(s.r, 2*agentapi.MaxFrame))
	out, err := orDiscard(stdio.Stdout), orDiscard(stdio.Stderr)
	for {
		t, p, rerr := r.Next()
		if rerr != nil {
			if ctx.Err() != nil {
				return agentapi.Exit{}, context.Cause(ctx)
			}
			return agentapi.Exit{}, fmt.Errorf("%w: %w", ErrLost, rerr)
		}
		var werr error
		switch t {
		case agentapi.FrameStdout:
			_, werr = out.Write(p)
		case agentapi.FrameStderr:
			_, werr = err.Write(p)
		case agentapi.FrameExit:
			var e agentapi.Exit
			if jerr := json.Unmarshal(p, &e); jerr != nil {
				return e, fmt.Errorf("%w: exit: %w", ErrAgent, jerr)
			}
			e.Code &= 0xff // what a process can exit with, whatever a guest says
			return e, nil
		default:
			return agentapi.Exit{}, fmt.Errorf("%w: frame of type %d, which is the host's", ErrAgent, t)
		}
		if werr != nil {
			return agentapi.Exit{}, fmt.Errorf("write the container's output: %w", werr)
		}
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func (s *Stream) sendInput(r io.Reader) {
	if r != nil {
		buf := make([]byte, agentapi.MaxFrame)
		for {
			n, err := r.Read(buf)
			if n > 0 && s.send(agentapi.FrameStdin, buf[:n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	_ = s.send(agentapi.FrameStdinClose, nil)
}

func (s *Stream) sendSizes(sizes <-chan Size, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case z, ok := <-sizes:
			if !ok || s.send(agentapi.FrameResize, agentapi.Resize(z.Rows, z.Cols)) != nil {
				return
			}
		}
	}
}

// Signal sends a signal to the process.
func (s *Stream) Signal(sig int) error { return s.send(agentapi.FrameSignal, []byte{byte(sig)}) }

func (s *Stream) send(t agentapi.FrameType, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return agentapi.WriteFrame(s.conn, t, p)
}

// Close ends the connection. A command of Exec gets a hang-up; the container
// goes on.
func (s *Stream) Close() error { return s.conn.Close() }
