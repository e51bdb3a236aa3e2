package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	headerTimeout = time.Minute // for a registry to start its answer
	stallTimeout  = time.Minute // without a byte of a layer
)

// findRemote finds an image in a registry.
func (s *Store) findRemote(ctx context.Context, r reference, want platform) (*content, error) {
	keys := &keychain{getenv: os.Getenv, uid: os.Getuid()}
	base := remote.DefaultTransport.(*http.Transport).Clone()
	base.ResponseHeaderTimeout = headerTimeout
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(keys),
		remote.WithTransport(secureTransport{base}),
		remote.WithUserAgent("fcvm"),
	)
	if err != nil {
		return nil, err
	}
	reg := repository{puller: puller, ref: r.name, keys: keys, idle: base.CloseIdleConnections}
	d, err := puller.Get(ctx, r.name)
	if err == nil && int64(len(d.Manifest)) > s.limits().Manifest {
		err = fmt.Errorf("%w: a manifest of %d bytes", ErrTooLarge, len(d.Manifest))
	}
	if err == nil {
		var c *content
		if c, err = resolve(ctx, reg, d.MediaType, d.Manifest, want, s.limits()); err == nil {
			return c, nil
		}
	}
	reg.close()
	return nil, reg.explain(ctx, err)
}

// repository is the blobs of a registry under one name.
type repository struct {
	puller *remote.Puller
	ref    name.Reference
	keys   *keychain
	idle   func()
}

func (g repository) close() { g.idle() }

func (g repository) digest(d v1.Descriptor) name.Digest {
	return g.ref.Context().Digest(d.Digest.String())
}

// read reads a manifest or a configuration.
func (g repository) read(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	if d.Size > limit {
		return nil, fmt.Errorf("%w: blob %s has %d bytes", ErrTooLarge, d.Digest, d.Size)
	}
	if d.MediaType.IsImage() || d.MediaType.IsIndex() {
		m, err := g.puller.Get(ctx, g.digest(d)) // checks the digest
		if err != nil {
			return nil, g.explain(ctx, err)
		}
		if int64(len(m.Manifest)) > limit {
			return nil, fmt.Errorf("%w: a manifest of %d bytes", ErrTooLarge, len(m.Manifest))
		}
		return m.Manifest, nil
	}
	r, err := g.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return readAll(r, d, limit)
}

func (g repository) layer(d v1.Descriptor) blob {
	return blob{digest: d.Digest.String(), size: d.Size, open: func(ctx context.Context) (io.ReadCloser, error) {
		return g.open(ctx, d)
	}}
}

// open starts to download a blob. A download that stalls is given up.
func (g repository) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	l, err := g.puller.Layer(ctx, g.digest(d))
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	watch := &stallReader{ReadCloser: r}
	watch.timer = time.AfterFunc(stallTimeout, func() { _ = r.Close() })
	return watch, nil
}

type stallReader struct {
	io.ReadCloser
	timer *time.Timer
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(stallTimeout)
	return s.ReadCloser.Read(p)
}

func (s *stallReader) Close() error {
	s.timer.Stop()
	return s.ReadCloser.Close()
}

// secureTransport allows plain HTTP to this machine only, whatever a name, a
// redirect or an authentication challenge says.
type secureTransport struct{ base http.RoundTripper }

func (t secureTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Hostname()) {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("plain HTTP to %s: that is allowed for localhost only", req.URL.Host)
	}
	return t.base.RoundTrip(req)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// explain says in the person's words what a registry's error means.
func (g repository) explain(ctx context.Context, err error) error {
	for _, own := range []error{ErrReference, ErrNotFound, ErrRegistry, ErrUnauthorized, ErrPlatform, ErrCorrupt, ErrUnsafe, ErrTooLarge} {
		if errors.Is(err, own) {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	host := g.host()
	var te *transport.Error
	if errors.As(err, &te) {
		return g.explainStatus(host, te)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Errorf("%w: the name %s is not known: check what is before the first slash, and that the network is up", ErrRegistry, host)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w: cannot connect to %s: %w: is it running, and is the network up?", ErrRegistry, host, op.Err)
	}
	return fmt.Errorf("%w: %s: %w", ErrRegistry, host, err)
}

// host is the registry as people call it.
func (g repository) host() string {
	if h := g.ref.Context().RegistryStr(); h != name.DefaultRegistry {
		return h
	}
	return "docker.io"
}

func (g repository) explainStatus(host string, te *transport.Error) error {
	repo := g.ref.Context().RepositoryStr()
	switch te.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		hint := ""
		if g.keys.problem != nil {
			hint = fmt.Sprintf(" (credentials could not be read: %v)", g.keys.problem)
		}
		return fmt.Errorf("%w: %s on %s does not exist or is not public: check the name, or log in with: docker login %s or: podman login %s%s",
			ErrUnauthorized, repo, host, host, host, hint)
	case http.StatusNotFound:
		return fmt.Errorf("%w: there is no %s in %s on %s: check the name and the tag", ErrNotFound, g.ref.Identifier(), repo, host)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s allows no more pulls for now: wait, or log in with: docker login %s", ErrRegistry, host, host)
	}
	return fmt.Errorf("%w: %s answered %d: %w", ErrRegistry, host, te.StatusCode, te)
}
