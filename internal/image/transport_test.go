package image

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

// TestGuardedDialer plays the internet with an address of this machine: who is
// there sends us to nobody in here, whoever is in here may.
func TestGuardedDialer(t *testing.T) {
	listen := func(ip string) string {
		l, err := net.Listen("tcp", ip+":0")
		if err != nil {
			t.Skipf("%v", err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		return l.Addr().String()
	}
	out, other, in := listen("127.0.0.2"), listen("127.0.0.2"), listen("127.0.0.1")
	_, port, err := net.SplitHostPort(in)
	if err != nil {
		t.Fatal(err)
	}
	named := "localhost:" + port
	for _, tt := range []struct {
		name     string
		registry string
		addrs    []string // that are connected to, the last is refused
		proxy    string
		fails    bool
	}{
		{"itself", out, []string{out, out}, "", false},
		{"elsewhere on the internet", out, []string{out, other}, "", false},
		{"in here", out, []string{out, in}, "", true},
		{"in here, by a name", out, []string{out, named}, "", true},
		{"in here, again", out, []string{out, other, out, in}, "", true},
		{"before the registry was there", out, []string{in}, "", true},
		{"from in here", in, []string{in, named}, "", false},
		{"from in here, by a name", named, []string{named, in}, "", false},
		{"from in here to the internet and back", in, []string{in, out, named}, "", false},
		{"a proxy in here", out, []string{in, in}, in, false},
		{"from behind a proxy", out, []string{in, named}, in, true},
	} {
		host, _, err := net.SplitHostPort(tt.registry)
		if err != nil {
			t.Fatal(err)
		}
		g := &guardedDialer{registry: host, isPublic: func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.2") }}
		if tt.proxy != "" {
			find := g.proxy(http.ProxyURL(&url.URL{Scheme: "http", Host: tt.proxy}))
			if u, err := find(httptest.NewRequest(http.MethodGet, "https://"+out, nil)); err != nil || u.Host != tt.proxy {
				t.Errorf("%s: %v, %v", tt.name, u, err)
			}
		}
		for i, addr := range tt.addrs {
			c, err := g.dial(t.Context(), "tcp", addr)
			if err == nil {
				_ = c.Close()
			}
			if fails := tt.fails && i == len(tt.addrs)-1; fails != errors.Is(err, errInside) || !fails && err != nil {
				t.Errorf("%s: %s: %v", tt.name, addr, err)
			}
		}
	}
}

// TestProxyPort: a proxy's port is the usual one of its kind if none is given.
func TestProxyPort(t *testing.T) {
	for proxy, addr := range map[string]string{
		"http://p.lan": "p.lan:80", "https://p.lan": "p.lan:443", "socks5://p.lan": "p.lan:1080", "http://[fd00::1]:3128": "[fd00::1]:3128",
	} {
		u, err := url.Parse(proxy)
		if err != nil {
			t.Fatal(err)
		}
		g := &guardedDialer{}
		if _, err := g.proxy(http.ProxyURL(u))(httptest.NewRequest(http.MethodGet, "https://a/", nil)); err != nil || !g.proxies[addr] {
			t.Errorf("%s: %v, %v", proxy, g.proxies, err)
		}
	}
}

func TestIsPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1": true, "198.18.0.1": true,
		"10.0.0.1": false, "172.16.3.4": false, "192.168.1.1": false, "169.254.169.254": false, "127.0.0.1": false, "100.64.0.1": false,
		"0.0.0.0": false, "::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fd00:ec2::254": false,
	} {
		if got := isPublic(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// TestEnsureRedirect: a registry in here may keep its layers in here, at an
// address or under another name.
func TestEnsureRedirect(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	ref := r.push(t, "app:v1", newImage(t, runtime.GOARCH, map[string]string{"f": "1"}))
	_, port, err := net.SplitHostPort(r.host)
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range [][2]string{{"localhost:" + port, r.host}, {r.host, "localhost:" + port}} {
		var redirects int
		r.intercept = func(w http.ResponseWriter, req *http.Request) bool {
			if req.Host != way[0] || !strings.Contains(req.URL.Path, "/blobs/") {
				return false
			}
			redirects++
			http.Redirect(w, req, "http://"+way[1]+req.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		img, err := openStore(t).Ensure(context.Background(), strings.Replace(ref, r.host, way[0], 1), EnsureOptions{})
		if err != nil || redirects == 0 {
			t.Errorf("from %s to %s: %v after %d redirects", way[0], way[1], err, redirects)
		}
		img.Release()
	}
}

// TestExplainInside: that it is refused has nothing to do with the network.
func TestExplainInside(t *testing.T) {
	g := &guardedDialer{registry: "evil.example", isPublic: isPublic}
	_, err := g.dial(t.Context(), "tcp", "127.0.0.1:1")
	ref, parseErr := name.ParseReference("evil.example/app")
	if parseErr != nil {
		t.Fatal(parseErr)
	}
	err = repository{ref: ref}.explain(t.Context(), &url.Error{Op: "Get", URL: "x", Err: err})
	if !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "evil.example sends us on to 127.0.0.1") || strings.Contains(err.Error(), "is it running") {
		t.Errorf("got %v", err)
	}
}
