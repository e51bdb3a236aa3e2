package agentclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// CopyOut returns a tar stream of a path in the container. An error of its
// Read may come in the middle, when the guest cannot go on; a stream without
// one is complete. What is in it is the container's: trust none of it.
func (c *Client) CopyOut(ctx context.Context, req agentapi.CopyRequest) (io.ReadCloser, error) {
	resp, err := c.copy(ctx, http.MethodGet, agentapi.PathCopyOut, req, nil)
	if err == nil && resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		if err = readAnswer(resp, nil); err == nil {
			err = fmt.Errorf("%w: HTTP status %d", ErrAgent, resp.StatusCode)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("copy from the container: %w", err)
	}
	return &copyBody{resp}, nil
}

// CopyIn writes a tar stream into the container and returns what the guest has
// left out, with the reasons.
func (c *Client) CopyIn(ctx context.Context, req agentapi.CopyRequest, stream io.Reader) (skipped []string, err error) {
	var done agentapi.CopyResponse
	// A read that fails must not look like the end of the stream; the transport
	// would hide why it has ended the request.
	watched := &watchedReader{r: stream}
	resp, err := c.copy(ctx, http.MethodPost, agentapi.PathCopyIn, req, watched)
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		err = readAnswer(resp, &done)
	}
	if read := watched.failure(); read != nil {
		return nil, read
	}
	if err != nil {
		return nil, fmt.Errorf("copy into the container: %w", err)
	}
	done.Skipped = done.Skipped[:min(len(done.Skipped), agentapi.MaxSkipped)]
	for i, s := range done.Skipped {
		done.Skipped[i] = clean(s)
	}
	return done.Skipped, nil
}

func (c *Client) copy(ctx context.Context, method, path string, r agentapi.CopyRequest, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path+"?"+r.Query().Encode(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, unwrapURL(err)
	}
	return resp, nil
}

// copyBody is a body whose end may be an error.
type copyBody struct{ resp *http.Response }

func (b *copyBody) Read(p []byte) (int, error) {
	n, err := b.resp.Body.Read(p)
	if errors.Is(err, io.EOF) {
		if msg := b.resp.Trailer.Get(agentapi.TrailerError); msg != "" {
			return n, &agentapi.Error{Message: clean(msg)}
		}
		return n, io.EOF
	}
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return n, nil
}

func (b *copyBody) Close() error { return b.resp.Body.Close() }

// watchedReader remembers why a stream could not be read.
type watchedReader struct {
	r io.Reader

	mu  sync.Mutex
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	}
	return n, err
}

func (w *watchedReader) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
