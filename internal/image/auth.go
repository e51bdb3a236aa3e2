package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

const (
	maxAuthFile   = 4 << 20
	helperTimeout = 30 * time.Second
	// authFileHelper stands for the files in a list of helpers.
	authFileHelper = "containers-auth.json"
)

// keychain finds credentials where docker login and podman login put them:
//
//	$REGISTRY_AUTH_FILE
//	$XDG_RUNTIME_DIR/containers/auth.json
//	$XDG_CONFIG_HOME/containers/auth.json, else ~/.config/…
//	$DOCKER_CONFIG/config.json, else ~/.docker/config.json
//
// All of them are asked, in this order; the first that knows the registry wins.
// https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
type keychain struct {
	getenv  func(string) string
	uid     int
	file    string   // if given, the only one
	helpers []string // of registries.conf, asked last
	problem error    // the first that kept credentials from being read
}

// authFile is Docker's config.json and Podman's auth.json.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"` // base64 of USER:PASSWORD
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Resolve implements authn.Keychain.
func (k *keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	for _, path := range k.files() {
		file, err := readAuthFile(path)
		if errors.Is(err, fs.ErrNotExist) && k.file == "" {
			continue
		}
		if err != nil {
			k.note(err)
			continue
		}
		for _, key := range authKeys(r) {
			if a := k.lookup(file, key); a != nil {
				return authn.FromConfig(*a), nil
			}
		}
		if file.CredsStore != "" {
			if a := k.ask(file.CredsStore, hostKeys(r)[0]); a != nil {
				return authn.FromConfig(*a), nil
			}
		}
	}
	for _, h := range k.helpers {
		if h == authFileHelper || k.file != "" {
			continue
		}
		if a := k.ask(h, hostKeys(r)[0]); a != nil {
			return authn.FromConfig(*a), nil
		}
	}
	return authn.Anonymous, nil
}

func (k *keychain) note(err error) {
	if k.problem == nil {
		k.problem = err
	}
}

func (k *keychain) files() []string {
	if k.file != "" {
		return []string{k.file}
	}
	var out []string
	add := func(dir string, rest ...string) {
		if dir != "" {
			out = append(out, filepath.Join(append([]string{dir}, rest...)...))
		}
	}
	home := k.getenv("HOME")
	add(k.getenv("REGISTRY_AUTH_FILE"))
	if d := k.getenv("XDG_RUNTIME_DIR"); d != "" {
		add(d, "containers", "auth.json")
	} else {
		add(fmt.Sprintf("/run/containers/%d", k.uid), "auth.json")
	}
	if d := k.getenv("XDG_CONFIG_HOME"); d != "" {
		add(d, "containers", "auth.json")
	} else {
		add(home, ".config", "containers", "auth.json")
	}
	if d := k.getenv("DOCKER_CONFIG"); d != "" {
		add(d, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	return out
}

func readAuthFile(path string) (authFile, error) {
	var file authFile
	f, err := os.Open(path)
	if err != nil {
		return file, err
	}
	defer func() { _ = f.Close() }()
	b, err := readBounded(f, maxAuthFile)
	if err != nil {
		return file, fmt.Errorf("read %s: %w", path, err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return file, nil
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return file, fmt.Errorf("read %s: %w", path, err)
	}
	return file, nil
}

// authKeys are the keys that may hold a repository's credentials, the most
// particular first: Podman has keys per namespace, Docker has URLs.
func authKeys(r authn.Resource) []string {
	host, hosts := r.RegistryStr(), hostKeys(r)
	var keys []string
	repo := strings.TrimPrefix(strings.TrimPrefix(r.String(), host), "/")
	for repo != "" {
		for _, h := range hosts {
			keys = append(keys, h+"/"+repo)
		}
		repo, _ = cutLast(repo, "/")
	}
	for _, h := range hosts {
		keys = append(keys, h, "https://"+h, "https://"+h+"/", "https://"+h+"/v1/", "https://"+h+"/v2/", "http://"+h)
	}
	return keys
}

// hostKeys are the names of a registry, first the one that helpers know.
func hostKeys(r authn.Resource) []string {
	if host := r.RegistryStr(); host != name.DefaultRegistry {
		return []string{host}
	}
	return []string{authn.DefaultAuthKey, "docker.io", name.DefaultRegistry, "registry-1.docker.io"}
}

func cutLast(s, sep string) (before, after string) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+len(sep):]
}

// lookup asks one file for one key: its helper for the key, then its own
// entry. Nil: it knows nothing.
func (k *keychain) lookup(file authFile, key string) *authn.AuthConfig {
	if h := file.CredHelpers[key]; h != "" {
		if a := k.ask(h, key); a != nil {
			return a
		}
	}
	e, ok := file.Auths[key]
	if !ok {
		return nil
	}
	a := &authn.AuthConfig{
		Username: e.Username, Password: e.Password,
		IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
	}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		user, password, found := strings.Cut(string(b), ":")
		if err != nil || !found {
			k.note(fmt.Errorf("the entry for %s is no base64 of USER:PASSWORD", key))
			return nil
		}
		a.Username, a.Password = user, strings.TrimRight(password, "\x00")
	}
	if *a == (authn.AuthConfig{}) { // a mark: the helper has them
		return nil
	}
	return a
}

// ask runs a credential helper:
// https://github.com/docker/docker-credential-helpers#development
func (k *keychain) ask(helper, key string) *authn.AuthConfig {
	if strings.ContainsRune(helper, '/') {
		k.note(fmt.Errorf("credential helper %q is no plain name", helper))
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, "get")
	cmd.Stdin = strings.NewReader(key)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		if !strings.Contains(string(out), "credentials not found") {
			k.note(fmt.Errorf("run docker-credential-%s: %w", helper, err))
		}
		return nil
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil || answer.Secret == "" {
		k.note(fmt.Errorf("docker-credential-%s gave no credentials for %s", helper, key))
		return nil
	}
	if answer.Username == "<token>" {
		return &authn.AuthConfig{IdentityToken: answer.Secret}
	}
	return &authn.AuthConfig{Username: answer.Username, Password: answer.Secret}
}
