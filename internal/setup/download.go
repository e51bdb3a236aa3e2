package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
)

const (
	connectTimeout = 10 * time.Second // to reach a server, and again for its answer
	stallTimeout   = 60 * time.Second // between two pieces of a body
	userAgent      = "fcvm"
)

var errStalled = fmt.Errorf("nothing has come for %s", stallTimeout)

// get fetches url and hands the body to read. Its error wraps ErrDownload,
// unless it is read's own.
func get(ctx context.Context, url string, read func(body io.Reader, size int64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrDownload, url, err)
	}
	req.Header.Set("User-Agent", userAgent)
	transport := &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: connectTimeout}).DialContext, TLSHandshakeTimeout: connectTimeout,
		ResponseHeaderTimeout: connectTimeout, DisableKeepAlives: true,
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDownload, err) // names the URL
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w %s: the server says %s", ErrDownload, url, resp.Status)
	}
	stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	body := &watchedBody{r: resp.Body, stall: stall}
	err = read(body, resp.ContentLength)
	if err == nil || body.err == nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w %s: %w", ErrDownload, url, cause)
	}
	return fmt.Errorf("%w %s: %w", ErrDownload, url, body.err)
}

// watchedBody puts the end of patience off with every piece, and remembers
// that it was the network that failed.
type watchedBody struct {
	r     io.Reader
	stall *time.Timer
	err   error
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.stall.Reset(stallTimeout)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// download fetches url to path, at most limit bytes, which must have the
// SHA-256 sum. On an error nothing is left at path.
func download(ctx context.Context, url, path, sum string, limit int64, rep progress.Reporter) error {
	return get(ctx, url, func(body io.Reader, size int64) (err error) {
		task := rep.Task("download "+url, max(size, 0))
		defer func() { task.Done(err) }()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("download %s: %w", url, err)
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				_ = os.Remove(path)
			}
		}()
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(f, h, counter{task}), io.LimitReader(body, limit+1))
		if err != nil {
			return fmt.Errorf("download %s: %w", url, err)
		}
		if n > limit {
			return fmt.Errorf("%w %s: it is larger than %d MiB", ErrDownload, url, limit>>20)
		}
		if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, sum) {
			return fmt.Errorf("%w: %s has SHA-256 %s, it should be %s", ErrChecksum, url, got, sum)
		}
		return nil
	})
}

// counter tells a task of the bytes that pass.
type counter struct{ task progress.Task }

func (c counter) Write(p []byte) (int, error) {
	c.task.Add(int64(len(p)))
	return len(p), nil
}
