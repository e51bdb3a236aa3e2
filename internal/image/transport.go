package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// newTransport returns how a registry, and who it sends us on to, is spoken to.
func newTransport(ref name.Reference, insecure bool, a Access) (*http.Transport, error) {
	base := remote.DefaultTransport.(*http.Transport).Clone()
	base.ResponseHeaderTimeout = headerTimeout
	certs, err := a.certificates(os.Getenv, hostOf(ref))
	if err != nil {
		return nil, err
	}
	certs.InsecureSkipVerify = insecure // where it was asked for, for this registry
	base.TLSClientConfig = certs
	registry := url.URL{Host: ref.Context().RegistryStr()}
	d := &guardedDialer{registry: registry.Hostname(), isPublic: isPublic}
	base.DialContext = d.dial
	base.Proxy = d.proxy(base.Proxy)
	return base, nil
}

// secureTransport allows plain HTTP to this machine and to the registry for
// which it was allowed only, whatever a name or an authentication challenge says.
// That registry may keep its layers elsewhere: they are checked, and nobody's
// password goes there.
type secureTransport struct {
	base  http.RoundTripper
	plain string // HOST[:PORT]; empty: none
}

// errPlainHTTP: something is to go over the network unprotected.
var errPlainHTTP = errors.New("that is allowed for localhost only, or with --tls-verify=false")

func (t secureTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	plain := t.plain != "" && (req.URL.Host == t.plain || isBareRedirect(req))
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Hostname()) && !plain {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("plain HTTP to %s: %w", req.URL.Host, errPlainHTTP)
	}
	return t.base.RoundTrip(req)
}

// isBareRedirect reports whether a request is where another was sent on to, and
// says nothing of who makes it.
func isBareRedirect(req *http.Request) bool {
	return req.Response != nil && req.Method == http.MethodGet && req.Header.Get("Authorization") == ""
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// errInside: a registry of the internet's sends us on to somewhere in here.
var errInside = errors.New("no public address, as the registry's own is")

const (
	dialTimeout = 30 * time.Second
	keepAlive   = 30 * time.Second
)

// guardedDialer keeps a registry on the internet from sending us on, by a
// redirect or for a token, to this host and its networks: what it is connected
// to counts, whatever name it has. A registry that is in here itself may.
type guardedDialer struct {
	registry string // its name or address, without a port
	isPublic func(netip.Addr) bool

	mu      sync.Mutex
	proxies map[string]bool // that are in between, HOST:PORT
	asked   bool            // the registry was connected to,
	inside  bool            // and is not on the internet
}

// isPublic says of an address whether it is one of the internet's. Those of
// carriers' networks (RFC 6598) are not: VPNs use them.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

// proxy remembers the proxies that are used: they may be anywhere.
func (g *guardedDialer) proxy(find func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(req *http.Request) (*url.URL, error) {
		u, err := find(req)
		if u != nil {
			port := u.Port()
			if port == "" {
				port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.proxies == nil {
				g.proxies = map[string]bool{}
			}
			g.proxies[net.JoinHostPort(u.Hostname(), port)] = true
		}
		return u, err
	}
}

func (g *guardedDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	free := g.inside || g.proxies[addr]
	first := !g.asked && host == g.registry && !free
	g.mu.Unlock()
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	if !free && !first {
		d.Control = func(_, address string, _ syscall.RawConn) error { return g.check(host, address) }
	}
	c, err := d.DialContext(ctx, network, addr)
	if err == nil && first {
		if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			g.decide(a.Addr().Unmap())
		}
	}
	return c, err
}

// decide goes by the first address of the registry: a name that has another the
// next time is not believed.
func (g *guardedDialer) decide(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.asked {
		g.asked, g.inside = true, !g.isPublic(a)
	}
}

// check refuses an address that is to be connected to.
func (g *guardedDialer) check(host, address string) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := a.Addr().Unmap(); !g.isPublic(ip) {
		return fmt.Errorf("%s sends us on to %s (%s), which is %w", g.registry, host, ip, errInside)
	}
	return nil
}
