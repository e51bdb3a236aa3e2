package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ownError fails the test for an error that none of this package's is in.
func ownError(t *testing.T, err error) {
	t.Helper()
	for _, own := range []error{ErrReference, ErrNotFound, ErrPlatform, ErrCorrupt, ErrUnsafe, ErrTooLarge} {
		if errors.Is(err, own) {
			return
		}
	}
	t.Errorf("an error that does not say what kind it is: %v", err)
}

// FuzzReference: what is understood has a name that means the same again.
func FuzzReference(f *testing.F) {
	sum := "sha256:" + strings.Repeat("0", 64)
	for _, s := range []string{
		"nginx", "ghcr.io/org/app:1.2", "a@" + sum, sum, "localhost:5000/x", "oci-archive:a.tar:tag", "oci:dir", "docker-archive:/x",
		"containers-storage:x", "docker-daemon:x:1", "docker://x", "", "-x", "a b", "x@sha256:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseReference(text)
		if err != nil {
			ownError(t, err)
			return
		}
		switch r.kind {
		case kindRegistry:
			again, err := parseReference(fullName(r.name))
			if err != nil || fullName(again.name) != fullName(r.name) {
				t.Errorf("%q is %s, and that is %v, %v", text, fullName(r.name), again.name, err)
			}
		case kindID:
			if !isDigest(r.digest) {
				t.Errorf("%q: digest %q", text, r.digest)
			}
		case kindContainersStorage, kindDockerDaemon:
			if strings.HasPrefix(r.path, "-") {
				t.Errorf("%q could be taken for a flag", r.path)
			}
		default:
			if r.path == "" {
				t.Errorf("%q has no path", text)
			}
		}
	})
}

// memBlobs answers every request for a manifest with the same bytes.
type memBlobs []byte

func (m memBlobs) read(_ context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	return readBounded(bytes.NewReader(m), limit)
}

func (m memBlobs) layer(d v1.Descriptor) blob { return blob{digest: d.Digest.String(), size: d.Size} }
func (m memBlobs) close()                     {}

// FuzzManifest reads indexes, manifests and configurations. What comes out of
// them names files only by SHA-256 digests, and has as many layers as it says.
func FuzzManifest(f *testing.F) {
	sum := "sha256:" + strings.Repeat("a", 64)
	descriptor := `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":3,"digest":"` + sum + `"}`
	config := `{"os":"linux","architecture":"amd64","config":{"Cmd":["x"],"Volumes":{"/v":{}}},"rootfs":{"type":"layers","diff_ids":["` + sum + `"]}}`
	for _, s := range []string{
		`{"schemaVersion":2,"config":` + descriptor + `,"layers":[` + descriptor + `]}`,
		`{"schemaVersion":2,"manifests":[` + strings.TrimSuffix(descriptor, "}") + `,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		`{"schemaVersion":1}`, `{"layers":null}`, config, `[]`, ``,
	} {
		f.Add([]byte(s), []byte(config))
	}
	want, err := parsePlatform("linux/amd64")
	if err != nil {
		f.Fatal(err)
	}
	lim := Limits{Manifest: 1 << 16, Config: 1 << 16, Layers: 10}.orDefault()
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		c, err := resolve(context.Background(), memBlobs(raw), "", raw, want, lim)
		if err != nil {
			ownError(t, err)
			return
		}
		if !isDigest(c.id) || len(c.layers) > lim.Layers {
			t.Errorf("id %q, %d layers", c.id, len(c.layers))
		}
		for _, l := range c.layers {
			if !isDigest(l.digest) || l.size < 0 {
				t.Errorf("layer %q of %d bytes", l.digest, l.size)
			}
		}
		cf, err := parseConfig(config, len(c.layers))
		if err != nil {
			ownError(t, err)
		} else if len(cf.diffIDs) != len(c.layers) {
			t.Errorf("%d contents of %d layers", len(cf.diffIDs), len(c.layers))
		}
	})
}

// FuzzArchive finds the images of archives.
func FuzzArchive(f *testing.F) {
	add := func(files ...string) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}
			if target, ok := strings.CutPrefix(files[i+1], "-> "); ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
				files[i+1] = ""
			}
			if err := w.WriteHeader(h); err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(w, files[i+1]); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	add("manifest.json", `[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l/layer.tar","m"]}]`, "c.json", "{}", "l/layer.tar", "x", "m", "-> l/layer.tar")
	add("index.json", `{"schemaVersion":2,"manifests":[]}`, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	add("a", "-> b", "b", "-> a", "manifest.json", `[{"Config":"a","Layers":["../../etc/passwd"]}]`)
	want, err := parsePlatform("")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "archive")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		fsys, err := openTar(context.Background(), path, dir, 1<<20)
		if err != nil {
			ownError(t, err)
			return
		}
		defer fsys.close()
		_ = isImageArchive(fsys, DefaultLimits)
		list, err := members(context.Background(), fsys, want, DefaultLimits)
		if err != nil {
			ownError(t, err)
		}
		for _, m := range list {
			if !isDigest(m.c.id) {
				t.Errorf("id %q", m.c.id)
			}
		}
	})
}

// FuzzRegistriesConf: whatever it says, a name leads to names.
func FuzzRegistriesConf(f *testing.F) {
	f.Add("unqualified-search-registries = ['a.example', 'b.example']\nshort-name-mode = 'permissive'", "app:1")
	f.Add("[[registry]]\nprefix = 'docker.io/x'\nlocation = 'y.example/z'\n[[registry.mirror]]\nlocation = 'm.example'\ninsecure = true", "x/app")
	f.Add("[aliases]\n'app' = 'a.example/b'\n[[registry]]\nprefix = '*.example'\nblocked = true", "app")
	f.Fuzz(func(t *testing.T, text, ref string) {
		path := filepath.Join(t.TempDir(), "registries.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := loadRegistries(func(k string) string {
			if k == "CONTAINERS_REGISTRIES_CONF" {
				return path
			}
			return ""
		})
		if err != nil {
			return
		}
		names, err := r.meanings(ref)
		if err != nil {
			return
		}
		for _, n := range names {
			list, err := r.endpoints(n)
			if err == nil && len(list) == 0 {
				t.Errorf("%s leads nowhere", n)
			}
		}
	})
}

// FuzzAuthFile reads Docker's and Podman's credentials.
func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"quay.io":{"auth":"dTpw"},"https://index.docker.io/v1/":{"identitytoken":"t"}}}`))
	f.Add([]byte(`{"auths":{"quay.io/org":{"auth":"no base64"}}}`))
	f.Add([]byte(`{"auths":null}`))
	repo, err := name.NewRepository("quay.io/org/app")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "auth.json")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := readAuthFile(path)
		if err != nil || file.CredsStore != "" || len(file.CredHelpers) > 0 { // no program is run here
			return
		}
		k := &keychain{getenv: func(string) string { return "" }, file: path}
		a, err := k.Resolve(repo)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := authn.Authorization(context.Background(), a); err != nil {
			t.Error(err)
		}
	})
}
