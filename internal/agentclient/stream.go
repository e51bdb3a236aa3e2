package agentclient

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// ErrLost: the connection ended before the process did. A container goes on;
// attach again.
var ErrLost = errors.New("connection to the guest agent was lost")

// ErrOutput: what a process wrote could not be passed on here.
var ErrOutput = errors.New("write output")

// stdinChunk is how much of stdin goes into one frame, bytes.
const stdinChunk = 32 << 10

// Size of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// Stdio is what a process in the guest is joined to.
type Stdio struct {
	Stdin          io.Reader // nil: no input; the process sees its end at once
	Stdout, Stderr io.Writer // nil: discarded
	Resize         <-chan Size
}

// Stream is a process's stdin, stdout and stderr over one connection.
type Stream struct {
	conn net.Conn
	in   *agentapi.FrameReader

	write  sync.Mutex // one frame at a time
	out    *agentapi.FrameWriter
	window *window
	done   chan struct{} // closed when Run returns
	close  func() error
}

// Attach joins the container's stdio. It may come before Start: output waits
// in the guest until somebody attaches.
func (c *Client) Attach(ctx context.Context) (*Stream, error) {
	s, err := c.stream(ctx, agentapi.PathAttach, nil)
	if err != nil {
		return nil, fmt.Errorf("attach to the container: %w", err)
	}
	return s, nil
}

// Exec starts a command; it gets a hang-up signal when the stream is closed
// before its end, unless it is detached.
func (c *Client) Exec(ctx context.Context, req agentapi.ExecRequest) (*Stream, error) {
	var s *Stream
	err := checkText(req)
	if err == nil {
		s, err = c.stream(ctx, agentapi.PathExec, req)
	}
	if err != nil {
		where := "container"
		if req.Guest {
			where = "guest"
		}
		return nil, fmt.Errorf("run a command in the %s: %w", where, err)
	}
	return s, nil
}

// checkText refuses what would not reach the guest as it is: JSON is UTF-8.
func checkText(req agentapi.ExecRequest) error {
	for _, s := range slices.Concat(req.Args, []string{req.WorkDir, req.User}) {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%q is not UTF-8 text", s)
		}
	}
	for _, kv := range req.Env {
		if name, _, _ := strings.Cut(kv, "="); !utf8.ValidString(kv) { // the value may be a secret
			return fmt.Errorf("the value of variable %q is not UTF-8 text; encode it, as with base64", name)
		}
	}
	return nil
}

// Share opens the stream by which a share is served (agentapi.ShareRequest).
func (c *Client) Share(ctx context.Context, name string) (io.ReadWriteCloser, error) {
	conn, r, err := c.upgraded(ctx, agentapi.PathShare, agentapi.ShareRequest{Name: name})
	if err != nil {
		return nil, fmt.Errorf("open the share %s: %w", name, err)
	}
	return struct {
		io.Reader
		io.WriteCloser
	}{r, conn}, nil
}

func (c *Client) stream(ctx context.Context, path string, body any) (*Stream, error) {
	conn, r, err := c.upgraded(ctx, path, body)
	if err != nil {
		return nil, err
	}
	return &Stream{
		conn: conn, in: agentapi.NewFrameReader(r), out: agentapi.NewFrameWriter(conn),
		window: newWindow(agentapi.StdinWindow), done: make(chan struct{}), close: sync.OnceValue(conn.Close),
	}, nil
}

// upgraded opens a connection that is a stream from here on. What comes is read
// from the reader.
func (c *Client) upgraded(ctx context.Context, path string, body any) (net.Conn, io.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := closeOnDone(ctx, conn)
	r, err := upgrade(ctx, conn, path, body)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
		return nil, nil, err
	}
	return conn, r, nil
}

// closeOnDone closes conn when ctx ends; stop undoes it and reports whether
// it was in time. Not every carrier of the channel has deadlines.
func closeOnDone(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.Close() })
}

// upgrade asks for a stream and returns what follows the answer.
func upgrade(ctx context.Context, conn net.Conn, path string, body any) (io.Reader, error) {
	req, err := newRequest(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", agentapi.StreamProtocol)
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	br := bufio.NewReaderSize(limited, stdinChunk)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		if limited.N <= 0 {
			err = errors.New("response headers exceeded")
		}
		return nil, fmt.Errorf("read answer: %w", notHTTP(err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		limited.N = 2 * agentapi.MaxBody // room for chunks; readAnswer has the limit
		defer func() { _ = resp.Body.Close() }()
		if err := readAnswer(resp, nil); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: HTTP status %d instead of a stream", ErrAgent, resp.StatusCode)
	}
	if got := resp.Header.Get("Upgrade"); got != agentapi.StreamProtocol {
		return nil, fmt.Errorf("%w: it offers %q", ErrAgent, clean(got))
	}
	limited.N = 1<<63 - 1 // from here on the frames have the limits
	return br, nil
}

// Close ends the stream, and a Run of it with ErrLost. A container goes on; a
// command that Exec has started is hung up.
func (s *Stream) Close() error { return s.close() }

// Signal sends a signal to the process. It overtakes input that the process
// has not read.
func (s *Stream) Signal(sig int) error {
	if err := s.send(agentapi.FrameSignal, []byte{byte(sig)}); err != nil {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	return nil
}

// Resize tells the process's terminal how large it is. Before the process has
// been started, it is what that finds.
func (s *Stream) Resize(to Size) error {
	if err := s.send(agentapi.FrameResize, agentapi.Resize(to.Rows, to.Cols)); err != nil {
		return fmt.Errorf("tell the terminal's size: %w", err)
	}
	return nil
}

// Run passes input and output on until the process has ended and all of its
// output was written, and returns how it ended. It closes the stream. It may
// be called once.
//
// A read from Stdin that blocks does not hold Run back: it goes on in the
// background, and what it gets then is dropped.
func (s *Stream) Run(ctx context.Context, stdio Stdio) (agentapi.Exit, error) {
	defer func() { _ = s.Close() }()
	defer func() { close(s.done); s.window.shut() }()
	defer closeOnDone(ctx, s.conn)()

	go s.pumpStdin(stdio.Stdin)
	if stdio.Resize != nil {
		go s.pumpResize(stdio.Resize)
	}
	exit, err := s.receive(stdio)
	if err != nil && ctx.Err() != nil {
		return agentapi.Exit{}, context.Cause(ctx)
	}
	return exit, err
}

// receive handles the guest's frames up to the exit.
func (s *Stream) receive(stdio Stdio) (agentapi.Exit, error) {
	for {
		t, p, err := s.in.Next()
		if errors.Is(err, agentapi.ErrFrame) {
			return agentapi.Exit{}, fmt.Errorf("%w: %w", ErrAgent, err)
		}
		if err != nil {
			return agentapi.Exit{}, fmt.Errorf("%w: %w", ErrLost, err)
		}
		switch t {
		case agentapi.FrameStdout:
			err = writeAll(stdio.Stdout, p, "stdout")
		case agentapi.FrameStderr:
			err = writeAll(stdio.Stderr, p, "stderr")
		case agentapi.FrameStdinAck:
			err = s.acknowledge(p)
		case agentapi.FrameExit:
			return parseExit(p)
		default:
			err = fmt.Errorf("%w: frame %d from a guest", ErrAgent, t)
		}
		if err != nil {
			return agentapi.Exit{}, err
		}
	}
}

func (s *Stream) acknowledge(p []byte) error {
	n, err := agentapi.ParseStdinAck(p)
	if err == nil {
		err = s.window.give(int(n))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAgent, err)
	}
	return nil
}

func parseExit(p []byte) (agentapi.Exit, error) {
	var e agentapi.Exit
	if err := json.Unmarshal(p, &e); err != nil {
		return agentapi.Exit{}, fmt.Errorf("%w: %w", ErrAgent, err)
	}
	if err := checkExit(&e); err != nil {
		return agentapi.Exit{}, err
	}
	return e, nil
}

func writeAll(w io.Writer, p []byte, name string) error {
	if w == nil {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrOutput, name, err)
	}
	return nil
}

// pumpStdin sends what it reads, never more than the guest has room for.
func (s *Stream) pumpStdin(r io.Reader) {
	if r == nil {
		_ = s.send(agentapi.FrameStdinClose, nil)
		return
	}
	buf := make([]byte, stdinChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && (!s.window.take(n) || s.send(agentapi.FrameStdin, buf[:n]) != nil) {
			return
		}
		if err != nil {
			_ = s.send(agentapi.FrameStdinClose, nil)
			return
		}
	}
}

func (s *Stream) pumpResize(sizes <-chan Size) {
	for {
		select {
		case sz, ok := <-sizes:
			if !ok || s.Resize(sz) != nil {
				return
			}
		case <-s.done:
			return
		}
	}
}

func (s *Stream) send(t agentapi.FrameType, p []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.out.Write(t, p)
}
