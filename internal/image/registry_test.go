package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// testRegistry is a registry on loopback, over plain HTTP.
type testRegistry struct {
	host     string
	handler  http.Handler
	requests atomic.Int64
	// intercept answers a request itself if it returns true.
	intercept func(http.ResponseWriter, *http.Request) bool
}

func startRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.requests.Add(1)
		if r.intercept == nil || !r.intercept(w, req) {
			h.ServeHTTP(w, req)
		}
	})
	srv := httptest.NewServer(r.handler)
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *testRegistry) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func TestEnsureRegistry(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}, map[string]string{"g": "1"}, map[string]string{"g": "1"})
	ref := r.push(t, "org/app:v1", img)
	s := openStore(t)
	ctx := context.Background()
	if _, err := s.Ensure(ctx, ref, EnsureOptions{Pull: PullNever}); !errors.Is(err, ErrNotFound) {
		t.Errorf("--pull never, not there: %v", err)
	}
	var p recorder
	got, err := s.Ensure(ctx, ref, EnsureOptions{Progress: &p})
	if err != nil {
		t.Fatal(err)
	}
	if got.Cached || got.Digest != configDigest(t, img) || catDisk(t, got.Disk, "g") != "1" {
		t.Errorf("got %+v", got)
	}
	if p.count("layer") != 2 || p.count("convert") != 1 { // the same layer twice
		t.Errorf("tasks: %v", p.tasks)
	}
	checkClean(t, s, 1)

	// Resolved before: the registry is not asked.
	before := r.requests.Load()
	for _, pull := range []Pull{"", PullMissing, PullNever} {
		if got, err = s.Ensure(ctx, ref, EnsureOptions{Pull: pull}); err != nil || !got.Cached {
			t.Errorf("--pull %s: %v, cached %v", pull, err, got.Cached)
		}
	}
	if n := r.requests.Load(); n != before {
		t.Errorf("the registry was asked %d times", n-before)
	}

	// The tag moves: only --pull always sees it.
	newer := newImage(t, runtime.GOARCH, map[string]string{"f": "2"})
	r.push(t, "org/app:v1", newer)
	if got, err = s.Ensure(ctx, ref, EnsureOptions{}); err != nil || got.Digest != configDigest(t, img) {
		t.Errorf("--pull missing after a move: %v, %s", err, got.Digest)
	}
	if got, err = s.Ensure(ctx, ref, EnsureOptions{Pull: PullAlways}); err != nil || got.Digest != configDigest(t, newer) || got.Cached {
		t.Errorf("--pull always after a move: %v, %+v", err, got)
	}
	if got, err = s.Ensure(ctx, ref, EnsureOptions{Pull: PullAlways}); err != nil || !got.Cached {
		t.Errorf("--pull always again: %v, cached %v", err, got.Cached)
	}

	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	got, err = s.Ensure(ctx, r.host+"/org/app@"+digest.String(), EnsureOptions{})
	if err != nil || got.Digest != configDigest(t, img) || !got.Cached {
		t.Errorf("by digest: %v, %+v", err, got)
	}
	checkClean(t, s, 2)
	if _, err = s.Ensure(ctx, ref, EnsureOptions{Pull: "sometimes"}); !errors.Is(err, ErrReference) {
		t.Errorf("--pull sometimes: %v", err)
	}
}

func TestEnsureRegistryErrors(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	r.push(t, "app:v1", newImage(t, runtime.GOARCH, map[string]string{"f": "1"}))
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	r.push(t, "other:v1", newImage(t, other, map[string]string{"f": "1"}))
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	tests := []struct {
		ref  string
		want error
		says string
	}{
		{r.host + "/app:v2", ErrNotFound, "v2"},
		{r.host + "/nothing", ErrNotFound, "nothing"},
		{r.host + "/other:v1", ErrPlatform, "linux/" + other},
		{strings.TrimPrefix(closed.URL, "http://") + "/app", ErrRegistry, "cannot connect"},
		{"no-such-host.invalid/app", ErrRegistry, "no-such-host.invalid"},
		{"", ErrReference, "empty"},
		{"Upper/Case", ErrReference, "lower case"},
		{"two words", ErrReference, "spaces"},
		{"docker://nginx", ErrReference, "docker://"},
		{"nginx:a:b", ErrReference, ""},
		{"nginx@sha256:123", ErrReference, ""},
	}
	for _, tt := range tests {
		s := openStore(t)
		_, err := s.Ensure(context.Background(), tt.ref, EnsureOptions{})
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.ref) {
			t.Errorf("%q: got %v, want %v that says %q", tt.ref, err, tt.want, tt.says)
		}
		checkClean(t, s, 0)
	}
}

// TestEnsurePlainHTTP: only this machine's registries are spoken to without
// TLS, not those of a private network.
func TestEnsurePlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "127.1.2.3": true, "::1": true,
		"10.0.0.1": false, "192.168.1.1": false, "example.com": false, "localhost.example.com": false,
	} {
		req := httptest.NewRequest(http.MethodGet, "http://[::1]/", nil)
		req.URL.Host = host
		if strings.Contains(host, ":") {
			req.URL.Host = "[" + host + "]"
		}
		ok := roundTripper(func(*http.Request) (*http.Response, error) { return &http.Response{}, nil })
		_, err := secureTransport{base: ok}.RoundTrip(req)
		if got := err == nil; got != want {
			t.Errorf("http://%s: allowed %v, want %v", host, got, want)
		}
	}
}

// TestPlainRedirect: where --tls-verify=false is given, layers may be anywhere,
// but no password goes there.
func TestPlainRedirect(t *testing.T) {
	for _, tt := range []struct {
		plain, auth string
		redirect    bool
		want        bool
	}{
		{"registry.lan:5000", "", true, true},
		{"registry.lan:5000", "Bearer x", true, false},
		{"registry.lan:5000", "", false, false}, // as to a server for tokens
		{"", "", true, false},
	} {
		req := httptest.NewRequest(http.MethodGet, "http://10.0.0.7:9000/", nil)
		if tt.auth != "" {
			req.Header.Set("Authorization", tt.auth)
		}
		if tt.redirect {
			req.Response = &http.Response{}
		}
		ok := roundTripper(func(*http.Request) (*http.Response, error) { return &http.Response{}, nil })
		_, err := secureTransport{base: ok, plain: tt.plain}.RoundTrip(req)
		if got := err == nil; got != tt.want || err != nil && !errors.Is(err, errPlainHTTP) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestEnsureBadRegistry: what a registry sends is checked, and tried again if
// the connection broke.
func TestEnsureBadRegistry(t *testing.T) {
	noCredentials(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": strings.Repeat("content ", 1000)})
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blobPath := "/blobs/" + digest.String()
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		serve func(w http.ResponseWriter, try int) bool
		want  error
	}{
		{"other bytes", func(w http.ResponseWriter, _ int) bool {
			_, _ = w.Write(make([]byte, size))
			return true
		}, ErrCorrupt},
		{"endless", func(w http.ResponseWriter, _ int) bool {
			for range 100 {
				_, _ = w.Write(make([]byte, 1<<16))
			}
			return true
		}, ErrCorrupt},
		{"breaks every time", func(w http.ResponseWriter, _ int) bool { return breakOff(w, size) }, ErrRegistry},
		{"breaks once", func(w http.ResponseWriter, try int) bool { return try == 1 && breakOff(w, size) }, nil},
		{"gone", func(w http.ResponseWriter, _ int) bool {
			http.Error(w, "gone", http.StatusNotFound)
			return true
		}, ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := startRegistry(t)
			ref := r.push(t, "app:v1", img)
			var tries atomic.Int32
			r.intercept = func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, blobPath) {
					return false
				}
				return tt.serve(w, int(tries.Add(1)))
			}
			s := openStore(t)
			_, err := s.Ensure(context.Background(), ref, EnsureOptions{})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			disks := 0
			if tt.want == nil {
				disks = 1
			}
			checkClean(t, s, disks)
		})
	}
}

// breakOff announces size bytes and sends half of them.
func breakOff(w http.ResponseWriter, size int64) bool {
	w.Header().Set("Content-Length", fmt.Sprint(size))
	_, _ = w.Write(make([]byte, size/2))
	panic(http.ErrAbortHandler)
}

// noCredentials points everything that is looked for in the environment to
// an empty directory, and returns it.
func noCredentials(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	for _, k := range []string{"HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(k, home)
	}
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(home, "none"))
	t.Setenv("REGISTRY_AUTH_FILE", "")
	return home
}

func TestEnsureCredentials(t *testing.T) {
	r := startRegistry(t)
	basic := base64.StdEncoding.EncodeToString([]byte("user:secret"))
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	ref := r.push(t, "org/app:v1", img)
	r.intercept = func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == "Basic "+basic {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return true
	}
	wrong := base64.StdEncoding.EncodeToString([]byte("user:wrong"))
	auths := func(key, auth string) string { return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, auth) }
	tests := []struct {
		name  string
		files map[string]string // below the home directory
		env   map[string]string // $ is the home directory
		fails bool
	}{
		{name: "none", fails: true},
		{name: "Docker's", files: map[string]string{".docker/config.json": auths(r.host, basic)}},
		{name: "Docker's, a URL", files: map[string]string{".docker/config.json": auths("https://"+r.host+"/v1/", basic)}},
		{name: "DOCKER_CONFIG", files: map[string]string{"d/config.json": auths(r.host, basic)}, env: map[string]string{"DOCKER_CONFIG": "$/d"}},
		{name: "Podman's", files: map[string]string{"containers/auth.json": auths(r.host, basic)}},
		{name: "Podman's, of a namespace", files: map[string]string{"containers/auth.json": auths(r.host+"/org", basic)}},
		{name: "of another namespace", files: map[string]string{"containers/auth.json": auths(r.host+"/other", basic)}, fails: true},
		{name: "REGISTRY_AUTH_FILE", files: map[string]string{"a.json": auths(r.host, basic)}, env: map[string]string{"REGISTRY_AUTH_FILE": "$/a.json"}},
		{name: "Podman's beside Docker's for others", files: map[string]string{
			".docker/config.json": auths("elsewhere.example", wrong), "containers/auth.json": auths(r.host, basic),
		}},
		{name: "REGISTRY_AUTH_FILE before all", files: map[string]string{
			".docker/config.json": auths(r.host, wrong), "containers/auth.json": auths(r.host, wrong), "a.json": auths(r.host, basic),
		}, env: map[string]string{"REGISTRY_AUTH_FILE": "$/a.json"}},
		{name: "REGISTRY_AUTH_FILE for others, and Podman's", files: map[string]string{
			"a.json": auths("elsewhere.example", wrong), "containers/auth.json": auths(r.host, basic),
		}, env: map[string]string{"REGISTRY_AUTH_FILE": "$/a.json"}},
		{name: "Podman's before Docker's", files: map[string]string{
			".docker/config.json": auths(r.host, wrong), "containers/auth.json": auths(r.host, basic),
		}},
		{name: "Podman's for others, and Docker's", files: map[string]string{
			".docker/config.json": auths(r.host, basic), "containers/auth.json": auths("elsewhere.example", wrong),
		}},
		{name: "a helper for the registry", files: map[string]string{
			".docker/config.json":             fmt.Sprintf(`{"credHelpers":{%q:"test"}}`, r.host),
			"bin/docker-credential-test:0755": helperScript(r.host),
		}, env: map[string]string{"PATH": "$/bin:/usr/bin:/bin"}},
		{name: "a helper for all", files: map[string]string{
			".docker/config.json":             `{"credsStore":"test"}`,
			"bin/docker-credential-test:0755": helperScript(r.host),
		}, env: map[string]string{"PATH": "$/bin:/usr/bin:/bin"}},
		{name: "a helper that is missing, and Podman's", files: map[string]string{
			".docker/config.json": `{"credsStore":"absent"}`, "containers/auth.json": auths(r.host, basic),
		}},
		{name: "wrong", files: map[string]string{".docker/config.json": auths(r.host, wrong)}, fails: true},
		{name: "unreadable", files: map[string]string{".docker/config.json": "{"}, fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			home := noCredentials(t)
			for file, content := range tt.files {
				file, exec, _ := strings.Cut(file, ":")
				mode := os.FileMode(0o600)
				if exec != "" {
					mode = 0o700
				}
				p := filepath.Join(home, file)
				if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(content), mode); err != nil {
					t.Fatal(err)
				}
			}
			for k, v := range tt.env {
				t.Setenv(k, strings.ReplaceAll(v, "$", home))
			}
			_, err := openStore(t).Ensure(context.Background(), ref, EnsureOptions{})
			switch {
			case !tt.fails && err != nil:
				t.Error(err)
			case tt.fails && (!errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "podman login "+r.host)):
				t.Errorf("got %v, want %v that names podman login", err, ErrUnauthorized)
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("the message shows a password: %v", err)
			}
		})
	}
}

func helperScript(host string) string {
	return `#!/bin/sh
read host
[ "$1 $host" = "get ` + host + `" ] || { echo "credentials not found in native keychain"; exit 1; }
echo '{"ServerURL":"x","Username":"user","Secret":"secret"}'
`
}

func TestAuthKeysOfDockerHub(t *testing.T) {
	ref, err := name.ParseReference("nginx")
	if err != nil {
		t.Fatal(err)
	}
	keys := strings.Join(authKeys(ref.Context()), " ")
	for _, want := range []string{"https://index.docker.io/v1/", "docker.io", "docker.io/library/nginx", "docker.io/library"} {
		if !strings.Contains(" "+keys+" ", " "+want+" ") {
			t.Errorf("%q is not among %s", want, keys)
		}
	}
}

// TestEnsureOnce: several callers at once convert once.
func TestEnsureOnce(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	ref := r.push(t, "app:v1", newImage(t, runtime.GOARCH, map[string]string{"f": strings.Repeat("x", 1<<20)}))
	s := openStore(t)
	var p recorder
	var wg sync.WaitGroup
	var converted atomic.Int64
	for range 8 {
		wg.Go(func() {
			img, err := s.Ensure(context.Background(), ref, EnsureOptions{Progress: &p})
			if err != nil {
				t.Error(err)
			}
			if !img.Cached {
				converted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := converted.Load(); n != 1 {
		t.Errorf("converted %d times", n)
	}
	checkClean(t, s, 1)
}
