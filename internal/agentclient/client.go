// Package agentclient is the host's side of the agent channel (package
// agentapi). A Client is made of a function that opens connections; it does
// not know what carries them.
//
// The guest is hostile: every answer is bounded in size and every handshake
// in time; what a guest says wrong loses that guest and nothing else.
package agentclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// ErrAgent: the agent refused a request or broke the protocol.
var ErrAgent = errors.New("guest agent")

const (
	// pollInterval is the pause between attempts to reach an agent that does
	// not answer yet.
	pollInterval = 5 * time.Millisecond
	// handshakeTimeout bounds the answer to a request that the agent gives
	// at once; emulated guests are slow.
	handshakeTimeout = time.Minute
)

// Dial opens a connection to the agent.
type Dial func(ctx context.Context) (net.Conn, error)

// Client talks to one agent. It is safe for concurrent use.
type Client struct {
	dial Dial
	http *http.Client
}

// New returns a client that opens connections with dial.
func New(dial Dial) *Client {
	return &Client{dial: dial, http: &http.Client{Transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns:           2,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// WaitAgent waits until the agent answers, and returns what it says.
func (c *Client) WaitAgent(ctx context.Context) (agentapi.Status, error) {
	for {
		st, err := c.Status(ctx)
		if err == nil {
			return st, nil
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("wait for the guest agent: %w (last: %w)", context.Cause(ctx), err)
		case <-time.After(pollInterval):
		}
	}
}

// Status asks the agent how far the guest is.
func (c *Client) Status(ctx context.Context) (agentapi.Status, error) {
	var st agentapi.Status
	err := c.call(ctx, http.MethodGet, agentapi.PathStatus, nil, &st)
	if err == nil && st.Version != agentapi.Version {
		err = fmt.Errorf("%w speaks version %d of the protocol, this fcvm %d", ErrAgent, st.Version, agentapi.Version)
	}
	return st, err
}

// SendPlan gives the agent its plan; it takes only one.
func (c *Client) SendPlan(ctx context.Context, p *agentapi.Plan) error {
	return c.call(ctx, http.MethodPut, agentapi.PathPlan, p, nil)
}

// Start starts the container and returns when its first process runs, or with
// a PID of 0 when it ended before; how is then said on the attached stream.
func (c *Client) Start(ctx context.Context) (agentapi.StartResponse, error) {
	var r agentapi.StartResponse
	err := c.call(ctx, http.MethodPost, agentapi.PathStart, nil, &r)
	return r, err
}

// Signal sends a signal to the container's first process.
func (c *Client) Signal(ctx context.Context, sig int) error {
	return c.call(ctx, http.MethodPost, agentapi.PathSignal, agentapi.SignalRequest{Signal: sig}, nil)
}

// Shutdown asks the guest to write its disks and end.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, agentapi.PathShutdown, nil, nil)
}

// call sends one request. in and out may be nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("ask the guest agent: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return fmt.Errorf("ask the guest agent: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the guest agent: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, agentapi.MaxBody+1))
	if err != nil {
		return fmt.Errorf("read the guest agent's answer: %w", err)
	}
	if len(b) > agentapi.MaxBody {
		return fmt.Errorf("%w: answer to %s is larger than %d bytes", ErrAgent, path, agentapi.MaxBody)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(resp.Status, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: answer to %s: %w", ErrAgent, path, err)
	}
	return nil
}

func refusal(status string, body []byte) error {
	var e agentapi.Error
	if json.Unmarshal(body, &e) != nil || e.Message == "" {
		return fmt.Errorf("%w: %s", ErrAgent, status)
	}
	return fmt.Errorf("%w: %s", ErrAgent, e.Message)
}
