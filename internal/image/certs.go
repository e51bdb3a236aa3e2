package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const maxCertFile = 4 << 20

// certDirs are where the certificates of a registry are looked for: the first
// that is there counts, the user's before the system's, Podman's before Docker's.
// https://github.com/containers/image/blob/main/docs/containers-certs.d.5.md
// https://docs.docker.com/engine/security/certificates
func certDirs(getenv func(string) string, host string) []string {
	if !filepath.IsLocal(host) {
		return nil
	}
	config := getenv("XDG_CONFIG_HOME")
	if home := getenv("HOME"); config == "" && home != "" {
		config = filepath.Join(home, ".config")
	}
	var dirs []string
	if config != "" {
		dirs = append(dirs, filepath.Join(config, "containers"), filepath.Join(config, "docker"))
	}
	dirs = append(dirs, "/etc/containers", "/etc/docker")
	for i, d := range dirs {
		dirs[i] = filepath.Join(d, "certs.d", host)
	}
	return dirs
}

// certificates returns how a registry is spoken to by TLS: whom the host trusts
// and the registry's own authorities vouch for it, and its client certificates
// for us.
func (a Access) certificates(getenv func(string) string, host string) (*tls.Config, error) {
	dirs := certDirs(getenv, host)
	if a.CertDir != "" {
		dirs = []string{a.CertDir}
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		// What is another user's is not for us.
		if a.CertDir == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			continue
		}
		c := new(tls.Config)
		if err == nil {
			err = addCertificates(c, dir, entries)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: read the certificates for %s: %w", ErrRegistry, host, err)
		}
		return c, nil
	}
	return new(tls.Config), nil
}

// addCertificates reads *.crt, authorities, and *.cert, a client certificate
// each, with its key in *.key.
func addCertificates(c *tls.Config, dir string, entries []fs.DirEntry) (err error) {
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		base := strings.TrimSuffix(path, filepath.Ext(path))
		switch filepath.Ext(path) {
		case ".crt":
			err = addAuthority(c, path)
		case ".cert":
			err = addClient(c, path, base+".key")
		case ".key":
			if _, missing := os.Stat(base + ".cert"); missing != nil {
				err = fmt.Errorf("%s has no certificate %s.cert beside it; authorities are called .crt", path, base)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func addAuthority(c *tls.Config, path string) error {
	pem, err := readCert(path)
	if err != nil {
		return err
	}
	if c.RootCAs == nil {
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			return err
		}
	}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return nil
}

func addClient(c *tls.Config, path, keyPath string) error {
	cert, err := readCert(path)
	if err != nil {
		return err
	}
	key, err := readCert(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no key %s beside it; authorities are called .crt", path, keyPath)
	}
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	c.Certificates = append(c.Certificates, pair)
	return nil
}

func readCert(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := readBounded(f, maxCertFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
