// Package agentclient is the host's side of the agent channel: it asks the
// agent in a guest what package agentapi defines.
//
// A Client holds nothing but a way to dial. The usual life: WaitAgent until
// the guest answers, SendPlan (or the metadata service has it), WaitReady, Attach, Start,
// then Stream.Run until the container has ended.
//
// The guest is hostile. Every answer is bounded in length, what it says is
// cleaned before it reaches a person, and a guest that says nothing is left
// when the caller's context ends. What a stream carries is the container's
// output and is passed on as it is.
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
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// ErrAgent: the guest answered something that an agent does not say.
var ErrAgent = errors.New("the guest does not speak the agent's protocol")

const (
	maxHeader  = 16 << 10 // bytes of an answer's header
	maxMessage = 4 << 10  // bytes of a guest's text that is shown to a person
	idleConns  = 2        // connections kept open between requests

	// pollPause is how long WaitAgent sleeps between dials that fail at once.
	pollPause = 10 * time.Millisecond

	// handshakeTimeout bounds the start of a stream. It is long, since an
	// emulated guest may be busy.
	handshakeTimeout = time.Minute
)

// Dial opens a connection to the agent's HTTP service (vmm.Machine.Dial).
type Dial func(context.Context) (net.Conn, error)

// Client asks one guest's agent. It is safe for concurrent use.
type Client struct {
	dial Dial
	http *http.Client
}

// New returns a client that dials with dial. It does not connect.
func New(dial Dial) *Client {
	return &Client{dial: dial, http: &http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			MaxIdleConns:           idleConns,
			MaxIdleConnsPerHost:    idleConns,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close drops idle connections. Streams live on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks how far the guest is.
func (c *Client) Status(ctx context.Context) (agentapi.Status, error) {
	st, err := c.status(ctx, agentapi.PathStatus)
	if err != nil {
		return st, fmt.Errorf("ask the guest agent for its status: %w", err)
	}
	return st, nil
}

// WaitUp waits until the guest has its root, with a plan or without, and
// returns its status. Without a plan it then waits for one, and may be saved.
func (c *Client) WaitUp(ctx context.Context) (agentapi.Status, error) {
	st, err := c.status(ctx, agentapi.PathUp)
	if err == nil && st.Phase == agentapi.PhaseFailed {
		err = errors.New(st.Error)
	}
	if err != nil {
		return st, fmt.Errorf("wait for the guest to come up: %w", err)
	}
	return st, nil
}

// WaitReady waits until the guest has its plan and is ready for the
// container. A guest that cannot get ready is an error that says why.
func (c *Client) WaitReady(ctx context.Context) error {
	st, err := c.status(ctx, agentapi.PathReady)
	if err == nil && st.Phase == agentapi.PhaseFailed {
		err = errors.New(st.Error)
	}
	if err != nil {
		return fmt.Errorf("wait for the guest to get ready: %w", err)
	}
	return nil
}

func (c *Client) status(ctx context.Context, path string) (agentapi.Status, error) {
	var st agentapi.Status
	if err := c.call(ctx, http.MethodGet, path, nil, &st); err != nil {
		return agentapi.Status{}, err
	}
	if st.Version != agentapi.Version {
		return agentapi.Status{}, fmt.Errorf("%w: it speaks version %d, not %d", ErrAgent, st.Version, agentapi.Version)
	}
	st.Error = clean(st.Error)
	if st.Exit != nil {
		if err := checkExit(st.Exit); err != nil {
			return agentapi.Status{}, err
		}
	}
	return st, nil
}

// WaitAgent waits until the agent answers, and returns its first status. It
// returns early only when ctx ends (with the last failure of a dial) or when
// something answers that is no agent.
func (c *Client) WaitAgent(ctx context.Context) (agentapi.Status, error) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return agentapi.Status{}, fmt.Errorf("wait for the guest agent: %w", errors.Join(context.Cause(ctx), last))
		case <-pause.C:
		}
		st, err := c.Status(ctx)
		if err == nil || errors.Is(err, ErrAgent) {
			return st, err
		}
		if ctx.Err() == nil {
			last = err
		}
		pause.Reset(pollPause)
	}
}

// SendPlan tells the agent what to run; once.
func (c *Client) SendPlan(ctx context.Context, p *agentapi.Plan) error {
	if err := c.call(ctx, http.MethodPut, agentapi.PathPlan, p, nil); err != nil {
		return fmt.Errorf("send the plan to the guest agent: %w", err)
	}
	return nil
}

// Start starts the container and returns when its first process runs. A
// container that could not be started is no error: the process id is then 0,
// and the stream's Exit says why.
func (c *Client) Start(ctx context.Context) (agentapi.StartResponse, error) {
	var r agentapi.StartResponse
	if err := c.call(ctx, http.MethodPost, agentapi.PathStart, nil, &r); err != nil {
		return r, fmt.Errorf("start the container: %w", err)
	}
	return r, nil
}

// Signal sends a signal to the container's first process.
func (c *Client) Signal(ctx context.Context, signal int) error {
	err := c.call(ctx, http.MethodPost, agentapi.PathSignal, agentapi.SignalRequest{Signal: signal}, nil)
	if err != nil {
		return fmt.Errorf("send signal %d to the container: %w", signal, err)
	}
	return nil
}

// Probe asks whether a service in the guest answers; nil says that it does.
func (c *Client) Probe(ctx context.Context, req agentapi.ProbeRequest) error {
	if err := c.call(ctx, http.MethodPost, agentapi.PathProbe, req, nil); err != nil {
		return fmt.Errorf("probe the guest: %w", err)
	}
	return nil
}

// Shutdown asks the guest to write its disks and power off. That it has done
// so shows by the end of the VMM. A guest may be gone before its answer has left
// it: a connection that ends without one is no error.
func (c *Client) Shutdown(ctx context.Context) error {
	err := c.call(ctx, http.MethodPost, agentapi.PathShutdown, nil, nil)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("shut the guest down: %w", err)
	}
	return nil
}

// call sends one request, with body as JSON if there is one, and decodes the
// answer into out.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	req, err := newRequest(ctx, method, path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return unwrapURL(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < http.StatusOK {
		// The body of a 101 is the connection, which no context ends any more.
		return fmt.Errorf("%w: HTTP status %d", ErrAgent, resp.StatusCode)
	}
	return readAnswer(resp, out)
}

func newRequest(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		if len(b) > agentapi.MaxBody {
			return nil, fmt.Errorf("encode request: %d bytes are more than the agent takes (%d)", len(b), agentapi.MaxBody)
		}
	}
	return http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(b))
}

func readAnswer(resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, agentapi.MaxBody+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(b) > agentapi.MaxBody {
		return fmt.Errorf("%w: an answer of more than %d bytes", ErrAgent, agentapi.MaxBody)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		e := new(agentapi.Error)
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			return fmt.Errorf("%w: HTTP status %d", ErrAgent, resp.StatusCode)
		}
		e.Message = clean(e.Message)
		return e
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("%w: HTTP status %d", ErrAgent, resp.StatusCode)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: %w", ErrAgent, err)
	}
	return nil
}

// unwrapURL drops the made-up URL from an error of net/http.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return notHTTP(err)
}

// notHTTP knows what net/http says of a peer that is no HTTP server, rather than
// one that is gone.
func notHTTP(err error) error {
	for _, sign := range []string{"malformed HTTP", "malformed MIME", "response headers exceeded"} {
		if strings.Contains(err.Error(), sign) {
			return fmt.Errorf("%w: %s", ErrAgent, clean(err.Error()))
		}
	}
	return err
}

// checkExit refuses an exit that no process has.
func checkExit(e *agentapi.Exit) error {
	if e.Code < 0 || e.Code > 255 {
		return fmt.Errorf("%w: exit code %d", ErrAgent, e.Code)
	}
	if e.Failed && (e.Code < 125 || e.Code > 127) {
		return fmt.Errorf("%w: exit code %d of a process that never ran", ErrAgent, e.Code)
	}
	e.Error = clean(e.Error)
	return nil
}

// clean makes a guest's text fit for a terminal: no control characters but
// line breaks and tabs, and not endless.
func clean(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || (unicode.IsPrint(r) && r != utf8.RuneError) {
			return r
		}
		return '·'
	}, s)
}
