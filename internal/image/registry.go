package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/fcvm/fcvm/internal/rootfs"
)

const (
	headerTimeout = time.Minute // for a registry to start its answer
	stallTimeout  = time.Minute // without a byte of a layer
)

// Access says how registries are spoken to.
type Access struct {
	// AuthFile holds the credentials, in place of all the places where they
	// are looked for otherwise.
	AuthFile string
	// CertDir holds the certificates, in place of all the places where they are
	// looked for otherwise, see certificates.
	CertDir string
	// TLSVerify false takes any certificate, and plain HTTP; true checks even
	// where registries.conf says otherwise. Nil: what registries.conf says.
	TLSVerify *bool
}

// findRemote finds an image in a registry or one of its mirrors, and sets
// r.name to what a short name has turned out to mean.
func (s *Store) findRemote(ctx context.Context, r *reference, want platform, a Access) (*content, error) {
	conf, err := loadRegistries(os.Getenv)
	if err != nil {
		return nil, err
	}
	names, err := conf.meanings(r.text)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, n := range names {
		c, err := s.findNamed(ctx, n, conf, want, a)
		if err == nil {
			r.name = n
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// findNamed asks one registry, its mirrors first. What a mirror cannot give,
// the registry may.
func (s *Store) findNamed(ctx context.Context, n name.Reference, conf registries, want platform, a Access) (*content, error) {
	list, err := conf.endpoints(n)
	if err != nil {
		return nil, err
	}
	var mirrors []error
	for i, e := range list {
		if a.TLSVerify != nil {
			e.insecure = !*a.TLSVerify
		}
		var c *content
		if c, err = s.findAt(ctx, e, conf.CredentialHelpers, want, a); err == nil || ctx.Err() != nil {
			return c, err
		}
		if i < len(list)-1 {
			mirrors = append(mirrors, fmt.Errorf("its mirror %s: %w", fullName(e.ref), err))
		}
	}
	return nil, errors.Join(append([]error{err}, mirrors...)...) // the registry's own: it is the last
}

// findAt asks one place.
func (s *Store) findAt(ctx context.Context, e endpoint, helpers []string, want platform, a Access) (*content, error) {
	reg, err := openRepository(ctx, e, helpers, a)
	if err != nil {
		return nil, err
	}
	d, err := reg.get(ctx, reg.ref)
	if err == nil && int64(len(d.Manifest)) > s.limits().Manifest {
		err = fmt.Errorf("%w: a manifest of %d bytes", ErrTooLarge, len(d.Manifest))
	}
	if err == nil {
		var c *content
		if c, err = resolve(ctx, reg, d.MediaType, d.Manifest, want, s.limits()); err == nil {
			c.keep, c.manifest = true, d.Digest.String()
			return c, nil
		}
	}
	reg.close()
	return nil, reg.explain(ctx, err)
}

// repository is the blobs of a registry under one name.
type repository struct {
	puller *remote.Puller
	client *http.Client
	ref    name.Reference
	keys   *keychain
	idle   func()
}

// openRepository introduces itself to a registry.
func openRepository(ctx context.Context, e endpoint, helpers []string, a Access) (repository, error) {
	ref := e.ref
	if e.insecure {
		var err error
		if ref, err = name.ParseReference(ref.Name(), name.Insecure); err != nil {
			return repository{}, err
		}
	}
	base, err := newTransport(ref, e.insecure, a)
	if err != nil {
		return repository{}, err
	}
	plain := ""
	if e.insecure {
		plain = ref.Context().RegistryStr()
	}
	g := repository{
		ref: ref, idle: base.CloseIdleConnections,
		keys: &keychain{getenv: os.Getenv, uid: os.Getuid(), file: a.AuthFile, helpers: helpers},
	}
	auth, err := g.keys.Resolve(ref.Context())
	if err != nil {
		return repository{}, err
	}
	var rt http.RoundTripper
	err = retry(ctx, func() (err error) {
		rt, err = transport.NewWithContext(ctx, ref.Context().Registry, auth,
			transport.NewUserAgent(secureTransport{base, plain}, "fcvm"), []string{ref.Scope(transport.PullScope)})
		return err
	})
	if err != nil {
		g.close()
		return repository{}, g.explain(ctx, err)
	}
	g.client = &http.Client{Transport: rt}
	g.puller, err = remote.NewPuller(remote.WithTransport(rt))
	return g, err
}

func (g repository) close() { g.idle() }

func (g repository) digest(d v1.Descriptor) name.Digest {
	return g.ref.Context().Digest(d.Digest.String())
}

// get reads a manifest, and checks it if it is named by its digest.
func (g repository) get(ctx context.Context, ref name.Reference) (d *remote.Descriptor, err error) {
	err = retry(ctx, func() (err error) {
		d, err = g.puller.Get(ctx, ref)
		return err
	})
	return d, err
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
		m, err := g.get(ctx, g.digest(d))
		if err != nil {
			return nil, g.explain(ctx, err)
		}
		if int64(len(m.Manifest)) > limit {
			return nil, fmt.Errorf("%w: a manifest of %d bytes", ErrTooLarge, len(m.Manifest))
		}
		return m.Manifest, nil
	}
	var b []byte
	err := retry(ctx, func() error {
		r, err := g.open(ctx, d)
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		in := &rootfs.FailReader{R: r}
		if b, err = readAll(in, d, limit); in.Err != nil {
			err = fmt.Errorf("%w: %w: blob %s: %w", ErrRegistry, errBroken, d.Digest, in.Err)
		}
		return err
	})
	return b, err
}

func (g repository) layer(d v1.Descriptor) blob {
	return blob{
		digest: d.Digest.String(), size: d.Size, mediaType: string(d.MediaType),
		open:   func(ctx context.Context) (io.ReadCloser, error) { return g.open(ctx, d) },
		resume: func(ctx context.Context, at int64) (io.ReadCloser, error) { return g.openAt(ctx, d, at) },
	}
}

func (g repository) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return g.openAt(ctx, d, 0)
}

// errNoRange: a registry sends blobs from their start only.
var errNoRange = errors.New("the registry sends whole blobs only")

// openAt starts to download a blob at an offset. A download that stalls is
// given up.
func (g repository) openAt(ctx context.Context, d v1.Descriptor, at int64) (io.ReadCloser, error) {
	u := url.URL{
		Scheme: g.ref.Context().Scheme(), Host: g.ref.Context().RegistryStr(),
		Path: path.Join("/v2", g.ref.Context().RepositoryStr(), "blobs", d.Digest.String()),
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", at))
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, g.broken(ctx, err)
	}
	if err := checkAnswer(resp, d, at); err != nil {
		_ = resp.Body.Close()
		return nil, g.broken(ctx, err)
	}
	watch := &stallReader{ReadCloser: resp.Body}
	watch.timer = time.AfterFunc(stallTimeout, func() { _ = resp.Body.Close() })
	return watch, nil
}

// checkAnswer looks at how a registry begins to answer a request for a blob
// from an offset on.
func checkAnswer(resp *http.Response, d v1.Descriptor, at int64) error {
	if at > 0 && (resp.StatusCode == http.StatusRequestedRangeNotSatisfiable || resp.StatusCode == http.StatusOK) {
		return errNoRange
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return err
	}
	if at > 0 {
		var from int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from != at {
			return errNoRange
		}
	}
	if n := resp.ContentLength; n >= 0 && n != d.Size-at {
		return fmt.Errorf("%w: blob %s has %d bytes there, the manifest says %d", ErrCorrupt, d.Digest, n+at, d.Size)
	}
	return nil
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

// broken explains an error, and marks one that may pass.
func (g repository) broken(ctx context.Context, err error) error {
	told := g.explain(ctx, err)
	if ctx.Err() == nil && mayPass(err) {
		return fmt.Errorf("%w: %w", errBroken, told)
	}
	return told
}

// explain says in the person's words what a registry's error means.
func (g repository) explain(ctx context.Context, err error) error {
	for _, own := range []error{errNoRange, ErrReference, ErrNotFound, ErrRegistry, ErrUnauthorized, ErrPlatform, ErrCorrupt, ErrUnsafe, ErrTooLarge} {
		if errors.Is(err, own) {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	host := hostOf(g.ref)
	var te *transport.Error
	if errors.As(err, &te) {
		return g.explainStatus(host, te)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Errorf("%w: the name %s is not known: check what is before the first slash, and that the network is up", ErrRegistry, host)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("%w: nobody that this host trusts vouches for %s: %w; put the certificate of who does into ~/.config/containers/certs.d/%s/ca.crt; with --tls-verify=false it is taken all the same", ErrRegistry, host, unknown, host)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		if errors.Is(op.Err, errInside) {
			return fmt.Errorf("%w: %w", ErrRegistry, op.Err)
		}
		return fmt.Errorf("%w: cannot connect to %s: %w: is it running, and is the network up?", ErrRegistry, host, op.Err)
	}
	return fmt.Errorf("%w: %s: %w", ErrRegistry, host, err)
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
