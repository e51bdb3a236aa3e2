package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

// TestEnsureTriesAgain: each request of a pull is made again when the registry
// is busy or the connection breaks, some times, and never when it says no.
func TestEnsureTriesAgain(t *testing.T) {
	noCredentials(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	status := func(code int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { http.Error(w, "not now", code) }
	}
	hangUp := func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	half := func(w http.ResponseWriter) {
		_, _ = w.Write([]byte("{"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	paths := map[string]string{
		"ping": "/v2/", "token": "/token", "manifest": "/manifests/v1", "configuration": "/blobs/" + configDigest(t, img),
	}
	for _, tt := range []struct {
		what  string
		fail  func(http.ResponseWriter)
		times int32 // that it fails
		want  error
		tries int32
	}{
		{"ping", status(http.StatusServiceUnavailable), 1, nil, 2},
		{"ping", hangUp, 2, nil, 3},
		{"token", status(http.StatusTooManyRequests), 1, nil, 2},
		{"token", hangUp, 2, nil, 3},
		{"manifest", status(http.StatusServiceUnavailable), 1, nil, 2},
		{"manifest", status(http.StatusBadGateway), 100, ErrRegistry, requestTries},
		{"manifest", hangUp, 2, nil, 3},
		{"manifest", half, 1, nil, 2},
		{"configuration", status(http.StatusTooManyRequests), 1, nil, 2},
		{"configuration", hangUp, 2, nil, 3},
		{"configuration", half, 1, nil, 2},
		{"ping", status(http.StatusForbidden), 100, ErrUnauthorized, 1},
		{"token", status(http.StatusUnauthorized), 100, ErrUnauthorized, 1},
		{"manifest", status(http.StatusNotFound), 100, ErrNotFound, 1},
		{"manifest", status(http.StatusForbidden), 100, ErrUnauthorized, 1},
		{"configuration", status(http.StatusNotFound), 100, ErrNotFound, 1},
	} {
		t.Run(fmt.Sprint(tt.what, " ", tt.want, " ", tt.times), func(t *testing.T) {
			r := startRegistry(t)
			ref := r.push(t, "app:v1", img)
			var tries atomic.Int32
			r.intercept = func(w http.ResponseWriter, req *http.Request) bool {
				if strings.HasSuffix(req.URL.Path, paths[tt.what]) && tries.Add(1) <= tt.times {
					tt.fail(w)
					return true
				}
				return needsToken(w, req, r.host)
			}
			_, err := openStore(t).Ensure(context.Background(), ref, EnsureOptions{})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			// What broke on a connection that was used before, Go itself asks again.
			if n := tries.Load(); n < tt.tries || n > tt.tries+1 || n != tt.tries && tt.want != nil {
				t.Errorf("asked %d times, want %d", n, tt.tries)
			}
		})
	}
}

// needsToken answers requests that have no token, and gives them out.
func needsToken(w http.ResponseWriter, req *http.Request, host string) bool {
	switch {
	case req.URL.Path == "/token":
		_, _ = fmt.Fprint(w, `{"token": "t"}`)
	case req.Header.Get("Authorization") != "Bearer t":
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, host))
		http.Error(w, "no token", http.StatusUnauthorized)
	default:
		return false
	}
	return true
}
