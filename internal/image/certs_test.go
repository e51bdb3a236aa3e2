package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

// startTLS is a registry with a certificate that nobody vouches for but itself.
func startTLS(t *testing.T, r *testRegistry, clients tls.ClientAuthType) (host string, cert, key []byte) {
	t.Helper()
	srv := httptest.NewUnstartedServer(r.handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail, as they should
	srv.TLS = &tls.Config{ClientAuth: clients, MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	pair := srv.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(srv.URL, "https://"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TestCertificates: a registry with an authority of its own is believed when
// that lies where Docker and Podman have it, and gets the client's certificate
// from there.
func TestCertificates(t *testing.T) {
	r := startRegistry(t)
	r.push(t, "app:v1", newImage(t, runtime.GOARCH, map[string]string{"f": "1"}))
	host, cert, key := startTLS(t, r, tls.NoClientCert)
	shy, _, _ := startTLS(t, r, tls.RequireAnyClientCert)
	own := func(host, file string) string { return filepath.Join("containers/certs.d", host, file) }
	no := false
	for _, tt := range []struct {
		name  string
		host  string
		files map[string][]byte // below $XDG_CONFIG_HOME
		a     Access            // its CertDir is below that, too
		says  string            // of an error
	}{
		{name: "none", host: host, says: host},
		{name: "Podman's", host: host, files: map[string][]byte{own(host, "ca.crt"): cert}},
		{name: "Docker's", host: host, files: map[string][]byte{"docker/certs.d/" + host + "/any.crt": cert}},
		{name: "--cert-dir", host: host, files: map[string][]byte{"here/ca.crt": cert}, a: Access{CertDir: "here"}},
		{name: "--cert-dir alone", host: host, files: map[string][]byte{own(host, "ca.crt"): cert, "here/note": nil}, a: Access{CertDir: "here"}, says: host},
		{name: "--cert-dir that is not there", host: host, files: map[string][]byte{own(host, "ca.crt"): cert}, a: Access{CertDir: "here"}, says: "here"},
		{name: "another host's", host: host, files: map[string][]byte{own("127.0.0.1", "ca.crt"): cert}, says: host},
		{name: "no PEM", host: host, files: map[string][]byte{own(host, "ca.crt"): []byte("text")}, says: "no certificate in PEM"},
		{name: "no client certificate", host: shy, files: map[string][]byte{own(shy, "ca.crt"): cert}, says: shy},
		{name: "a client certificate", host: shy, files: map[string][]byte{own(shy, "ca.crt"): cert, own(shy, "client.cert"): cert, own(shy, "client.key"): key}},
		{name: "a client certificate, and any of the registry's", host: shy, files: map[string][]byte{own(shy, "c.cert"): cert, own(shy, "c.key"): key}, a: Access{TLSVerify: &no}},
		{name: "without its key", host: shy, files: map[string][]byte{own(shy, "client.cert"): cert}, says: "no key"},
		{name: "without its certificate", host: shy, files: map[string][]byte{own(shy, "client.key"): key}, says: "no certificate"},
		{name: "with another key", host: shy, files: map[string][]byte{own(shy, "client.cert"): cert, own(shy, "client.key"): cert}, says: "client.cert"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home := noCredentials(t)
			for name, b := range tt.files {
				p := filepath.Join(home, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.a.CertDir != "" {
				tt.a.CertDir = filepath.Join(home, tt.a.CertDir)
			}
			_, err := openStore(t).Ensure(context.Background(), tt.host+"/app:v1", EnsureOptions{Access: tt.a})
			switch {
			case tt.says == "" && err != nil:
				t.Error(err)
			case tt.says != "" && (!errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("got %v, want %v that says %q", err, ErrRegistry, tt.says)
			}
		})
	}
}

func TestExplainUnknownAuthority(t *testing.T) {
	ref, err := name.ParseReference("registry.lan:5000/app")
	if err != nil {
		t.Fatal(err)
	}
	err = repository{ref: ref}.explain(context.Background(), x509.UnknownAuthorityError{})
	if !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "certs.d/registry.lan:5000/ca.crt") {
		t.Errorf("it does not say where to put the certificate: %v", err)
	}
}

func TestCertDirs(t *testing.T) {
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	for _, tt := range []struct {
		env  map[string]string
		host string
		want []string
	}{
		{map[string]string{"HOME": "/h"}, "a:5000", []string{
			"/h/.config/containers/certs.d/a:5000", "/h/.config/docker/certs.d/a:5000", "/etc/containers/certs.d/a:5000", "/etc/docker/certs.d/a:5000",
		}},
		{map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/c"}, "docker.io", []string{
			"/c/containers/certs.d/docker.io", "/c/docker/certs.d/docker.io", "/etc/containers/certs.d/docker.io", "/etc/docker/certs.d/docker.io",
		}},
		{nil, "a", []string{"/etc/containers/certs.d/a", "/etc/docker/certs.d/a"}},
		{nil, "..", nil},
	} {
		if got := certDirs(env(tt.env), tt.host); !slices.Equal(got, tt.want) {
			t.Errorf("%v, %s: %q", tt.env, tt.host, got)
		}
	}
}
