package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
)

const (
	connectTimeout = 30 * time.Second
	userAgent      = "fcvm"
)

// get starts a download. The caller closes the body.
func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrDownload, url, err)
	}
	req.Header.Set("User-Agent", userAgent)
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: connectTimeout, ResponseHeaderTimeout: connectTimeout,
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrDownload, url, err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w %s: the server says %s", ErrDownload, url, resp.Status)
	}
	return resp, nil
}

// download fetches url to path, at most limit bytes, which must have the
// SHA-256 sum. On an error nothing is left at path.
func download(ctx context.Context, url, path, sum string, limit int64, rep progress.Reporter) (err error) {
	resp, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	task := rep.Task("download "+url, max(resp.ContentLength, 0))
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
	n, err := io.Copy(io.MultiWriter(f, h, counter{task}), io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrDownload, url, err)
	}
	if n > limit {
		return fmt.Errorf("%w %s: it is larger than %d MiB", ErrDownload, url, limit>>20)
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, sum) {
		return fmt.Errorf("%w: %s has SHA-256 %s, it should be %s", ErrChecksum, url, got, sum)
	}
	return nil
}

// counter tells a task of the bytes that pass.
type counter struct{ task progress.Task }

func (c counter) Write(p []byte) (int, error) {
	c.task.Add(int64(len(p)))
	return len(p), nil
}
