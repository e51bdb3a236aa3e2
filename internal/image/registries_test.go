package image

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// writeConf writes a registries.conf and points fcvm to it.
func writeConf(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", path)
}

func TestMeanings(t *testing.T) {
	conf := func(text string) registries {
		writeConf(t, text)
		r, err := loadRegistries(os.Getenv)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	tests := []struct {
		conf, text, want string
	}{
		{"", "nginx", "docker.io/library/nginx:latest"},
		{"", "org/app:1", "docker.io/org/app:1"},
		{"", "localhost/app", "localhost/app:latest"},
		{"", "host:5000/app", "host:5000/app:latest"},
		{`unqualified-search-registries = ["quay.io", "docker.io"]`, "nginx:1", "quay.io/nginx:1 docker.io/library/nginx:1"},
		{"short-name-mode = \"enforcing\"\nunqualified-search-registries = [\"quay.io\"]", "nginx", "quay.io/nginx:latest"},
		{"short-name-mode = \"enforcing\"\nunqualified-search-registries = [\"quay.io\", \"docker.io\"]", "nginx", "error: quay.io, docker.io"},
		{"unqualified-search-registries = [\"quay.io\"]\n[aliases]\n\"app\" = \"ghcr.io/org/app\"", "app:7", "ghcr.io/org/app:7"},
		{"[aliases]\n\"app\" = \"Not A Name\"", "app", "error: Not A Name"},
	}
	for _, tt := range tests {
		r := conf(tt.conf)
		names, err := r.meanings(tt.text)
		var got []string
		for _, n := range names {
			got = append(got, fullName(n))
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = "error: " + err.Error()
		}
		want, isError := strings.CutPrefix(tt.want, "error: ")
		if text != tt.want && (!isError || !strings.Contains(text, want)) {
			t.Errorf("%s with %q: got %q, want %q", tt.text, tt.conf, text, tt.want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	writeConf(t, `
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "mirror.lan/hub"
insecure = true
[[registry.mirror]]
location = "digests.lan"
pull-from-mirror = "digest-only"

[[registry]]
prefix = "docker.io/secret"
blocked = true

[[registry]]
prefix = "*.corp.example"
insecure = true

[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "mirror.lan/wild"
insecure = true

[[registry]]
prefix = "*.moved.example"
location = "new.example/moved"

[[registry]]
prefix = "*.deep.wild.example"
location = "deep.example"

[[registry]]
prefix = "old.example/team"
location = "new.example/group/team"
`)
	r, err := loadRegistries(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	sum := "sha256:" + strings.Repeat("a", 64)
	tests := map[string]string{
		"docker.io/library/nginx:1":        "mirror.lan/hub/library/nginx:1(insecure) docker.io/library/nginx:1",
		"docker.io/x/y@" + sum:             "mirror.lan/hub/x/y@" + sum + "(insecure) digests.lan/x/y@" + sum + " docker.io/x/y@" + sum,
		"docker.io/secrets/y:1":            "mirror.lan/hub/secrets/y:1(insecure) docker.io/secrets/y:1",
		"docker.io/secret/y:1":             "blocked",
		"a.corp.example/x:1":               "a.corp.example/x:1(insecure)",
		"corp.example/x:1":                 "corp.example/x:1",
		"a.corp.example:50/x:1":            "a.corp.example:50/x:1(insecure)",
		"a.b.wild.example/x/y:1":           "mirror.lan/wild/x/y:1(insecure) a.b.wild.example/x/y:1",
		"wild.example/x:1":                 "wild.example/x:1",
		"other.example/a.wild.example/x:1": "other.example/a.wild.example/x:1",
		"a.moved.example/x@" + sum:         "new.example/moved/x@" + sum,
		"a.deep.wild.example:50/x:1":       "deep.example:50/x:1",
		"old.example/team/app:1":           "new.example/group/team/app:1",
		"old.example/teams/app:1":          "old.example/teams/app:1",
	}
	for text, want := range tests {
		names, err := r.meanings(text)
		if err != nil {
			t.Fatal(err)
		}
		list, err := r.endpoints(names[0])
		var got []string
		for _, e := range list {
			s := fullName(e.ref)
			if e.insecure {
				s += "(insecure)"
			}
			got = append(got, s)
		}
		if err != nil {
			got = []string{"blocked"}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: got %s, want %s", text, s, want)
		}
	}
}

func TestLoadRegistriesRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"[[registry]]\ninsecure = true\n":                                              "neither prefix nor location",
		"[[registry]]\nprefix = \"a.example\"\n[[registry.mirror]]\ninsecure = true\n": "a mirror of a.example has no location",
		"[[registry]\n": "registries.conf",
	} {
		writeConf(t, text)
		if _, err := loadRegistries(os.Getenv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error that says %q", text, err, want)
		}
	}
}

// TestMirror takes an image from a mirror, and from the registry when the
// mirror has not got it.
func TestMirror(t *testing.T) {
	noCredentials(t)
	mirror, origin := startRegistry(t), startRegistry(t)
	both := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	mirror.push(t, "copies/app:v1", both)
	origin.push(t, "app:v1", both)
	origin.push(t, "new:v1", newImage(t, runtime.GOARCH, map[string]string{"f": "2"}))
	writeConf(t, "[[registry]]\nlocation = \""+origin.host+"\"\n[[registry.mirror]]\nlocation = \""+mirror.host+"/copies\"\n")
	s := openStore(t)
	before := origin.requests.Load()
	img, err := s.Ensure(context.Background(), origin.host+"/app:v1", EnsureOptions{})
	if err != nil || img.Digest != configDigest(t, both) {
		t.Fatalf("%+v, %v", img, err)
	}
	if n := origin.requests.Load(); n != before {
		t.Errorf("the registry was asked %d times beside its mirror", n-before)
	}
	if _, err := s.Ensure(context.Background(), origin.host+"/new:v1", EnsureOptions{}); err != nil {
		t.Errorf("what the mirror has not got: %v", err)
	}
	_, err = s.Ensure(context.Background(), origin.host+"/nothing:v1", EnsureOptions{})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "nothing on "+origin.host) || !strings.Contains(err.Error(), "its mirror "+mirror.host+"/copies/nothing:v1: ") {
		t.Errorf("what nobody has: %v", err)
	}
	e, err := s.Find(origin.host+"/app:v1", "")
	if err != nil || len(e.Names) != 1 || e.Names[0].Name != origin.host+"/app:v1" || !isDigest(e.Names[0].Manifest) {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestShortName finds a name in the second of the registries to be searched,
// and in the cache the next time.
func TestShortName(t *testing.T) {
	noCredentials(t)
	first, second := startRegistry(t), startRegistry(t)
	second.push(t, "app:v1", newImage(t, runtime.GOARCH, map[string]string{"f": "1"}))
	writeConf(t, `unqualified-search-registries = ["`+first.host+`", "`+second.host+`"]`)
	s := openStore(t)
	if _, err := s.Ensure(context.Background(), "app:v1", EnsureOptions{}); err != nil {
		t.Fatal(err)
	}
	before := second.requests.Load()
	if img, err := s.Ensure(context.Background(), "app:v1", EnsureOptions{}); err != nil || !img.Cached || second.requests.Load() != before {
		t.Errorf("%+v, %v, %d requests", img, err, second.requests.Load()-before)
	}
	_, err := s.Ensure(context.Background(), "nothing", EnsureOptions{})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), first.host) || !strings.Contains(err.Error(), second.host) {
		t.Errorf("got %v, want %v that names both registries", err, ErrNotFound)
	}
}

// TestTLSVerify: a certificate that nobody vouches for is taken only when told.
func TestTLSVerify(t *testing.T) {
	noCredentials(t)
	plain := startRegistry(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	plain.push(t, "app:v1", img)
	host, _, _ := startTLS(t, plain, tls.NoClientCert)
	ref := host + "/app:v1"
	yes, no := true, false
	for _, tt := range []struct {
		name   string
		verify *bool
		conf   string
		fails  bool
	}{
		{"as usual", nil, "", true},
		{"--tls-verify=false", &no, "", false},
		{"registries.conf", nil, "[[registry]]\nlocation = \"" + host + "\"\ninsecure = true\n", false},
		{"--tls-verify against registries.conf", &yes, "[[registry]]\nlocation = \"" + host + "\"\ninsecure = true\n", true},
	} {
		writeConf(t, tt.conf)
		_, err := openStore(t).Ensure(context.Background(), ref, EnsureOptions{Access: Access{TLSVerify: tt.verify}})
		switch {
		case tt.fails && !errors.Is(err, ErrRegistry):
			t.Errorf("%s: got %v, want %v", tt.name, err, ErrRegistry)
		case !tt.fails && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
