package image

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// How a request that fails, or a download that breaks, is tried again. A try of
// a download that gets further than all before it does not count.
const (
	requestTries = 5
	requestTime  = 90 * time.Second // after which no request is tried again
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// errBroken: a request or a download ended early; another try may help.
var errBroken = errors.New("the connection broke")

// retry asks a registry for something small until it answers, or says no.
func retry(ctx context.Context, ask func() error) error {
	start, backoff := time.Now(), firstBackoff
	for try := 1; ; try++ {
		err := ask()
		if err == nil || ctx.Err() != nil || !mayPass(err) || try >= requestTries || time.Since(start) > requestTime {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// mayPass reports whether another try may help against an error of a request.
func mayPass(err error) bool {
	if errors.Is(err, errBroken) {
		return true
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		return answer.StatusCode >= http.StatusInternalServerError || answer.StatusCode == http.StatusTooManyRequests
	}
	for _, broke := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, broke) {
			return true
		}
	}
	var certificate *tls.CertificateVerificationError
	if errors.Is(err, errPlainHTTP) || errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &certificate) {
		return false
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.Temporary()
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return op.Timeout()
	}
	var request *url.Error // it got no answer
	return errors.As(err, &request)
}
