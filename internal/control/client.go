package control

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
	"net/url"
	"strings"
	"syscall"
	"time"
)

// ErrGone: nobody serves the socket, or not any more: the VM has ended, or is
// about to.
var ErrGone = errors.New("the VM's supervisor does not answer")

// Between a VM's first sign of life and its socket there are some milliseconds,
// more on a busy machine.
const (
	socketPatience = 5 * time.Second
	socketPoll     = 5 * time.Millisecond
)

// Client speaks to one supervisor. It is safe for concurrent use.
type Client struct {
	path  string
	alive func() bool
	http  *http.Client
}

// New returns a client of the socket at path. It does not connect. While alive
// says that there is a supervisor, the socket is waited for, for a while.
func New(path string, alive func() bool) *Client {
	c := &Client{path: path, alive: alive}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableKeepAlives: true,
	}}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for deadline := time.Now().Add(socketPatience); ; {
		conn, err := d.DialContext(ctx, "unix", c.path)
		if err == nil {
			return conn, nil
		}
		absent := errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
		if !absent || ctx.Err() != nil || time.Now().After(deadline) || !c.alive() {
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
		time.Sleep(socketPoll)
	}
}

// DialAgent opens a connection to the guest's agent.
func (c *Client) DialAgent(ctx context.Context) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	r, err := upgrade(ctx, conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("reach the guest agent: %w", err)
	}
	return agentConn{conn, r}, nil
}

func upgrade(ctx context.Context, conn net.Conn) (*bufio.Reader, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://fcvm"+pathAgent, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", agentProtocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = resp.Body.Close() }()
		return nil, readAnswer(resp, nil)
	}
	return r, nil
}

// agentConn is a connection with what was read of it already.
type agentConn struct {
	net.Conn
	r *bufio.Reader
}

func (c agentConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// Stop ends the container and returns when it has ended.
func (c *Client) Stop(ctx context.Context, timeout time.Duration) error {
	return c.call(ctx, http.MethodPost, pathStop, StopRequest{Timeout: timeout}, nil)
}

// Kill sends a signal to the container.
func (c *Client) Kill(ctx context.Context, signal int) error {
	return c.call(ctx, http.MethodPost, pathKill, KillRequest{Signal: signal}, nil)
}

// Pause stops the VM's virtual CPUs.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, pathPause, nil, nil)
}

// Resume lets them go on.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, pathResume, nil, nil)
}

// Rename gives the VM another name.
func (c *Client) Rename(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, pathRename, RenameRequest{Name: name}, nil)
}

// Update changes the VM while it runs.
func (c *Client) Update(ctx context.Context, u UpdateRequest) error {
	return c.call(ctx, http.MethodPost, pathUpdate, u, nil)
}

// Wait returns when the VM has ended, with how. An error that wraps ErrGone
// says that it ended without a word.
func (c *Client) Wait(ctx context.Context) (Ended, error) {
	var e Ended
	err := c.call(ctx, http.MethodGet, pathWait, nil, &e)
	return e, err
}

// WaitReady returns when the VM's readiness gate is open.
func (c *Client) WaitReady(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, pathReady, nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://fcvm"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var made *url.Error
		if errors.As(err, &made) {
			err = made.Err // without the URL, which is made up
		}
		if !errors.Is(err, ErrGone) {
			err = fmt.Errorf("%w: %w", ErrGone, err)
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return readAnswer(resp, out)
}

func readAnswer(resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	if resp.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(b, &f) != nil || f.Error == "" {
			return fmt.Errorf("the VM's supervisor answers with status %d: is it of another version?", resp.StatusCode)
		}
		if sentinel, ok := kinds[f.Kind]; ok {
			return &remoteError{f.Error, sentinel}
		}
		return errors.New(f.Error)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// remoteError has the supervisor's words and the sentinel that they came with.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return strings.TrimSpace(e.text) }
func (e *remoteError) Unwrap() error { return e.kind }
