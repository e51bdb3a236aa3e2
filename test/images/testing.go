package images

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Config is what a test wants an image to say.
type Config struct {
	Architecture string // empty: this machine's
	Entrypoint   []string
	Cmd          []string
	Env          []string // KEY=VALUE
	WorkDir      string
	User         string
	Program      string // path of a file that is /program in the image; empty: none
}

// Scratch makes an OCI archive of an image that holds an empty directory, and
// one program at most, and returns its path.
func Scratch(tb testing.TB, c Config) string {
	tb.Helper()
	if c.Architecture == "" {
		c.Architecture = runtime.GOARCH
	}
	w, err := newLayer(filepath.Join(tb.TempDir(), "layer.tar"))
	check(tb, err)
	check(tb, w.addItem(item{name: "empty/"}))
	if c.Program != "" {
		b, err := os.ReadFile(c.Program)
		check(tb, err)
		check(tb, w.addItem(item{name: "program", mode: 0o755, content: string(b)}))
	}
	l, err := w.finish()
	check(tb, err)
	img, err := assemble([]v1.Layer{l}, v1.Config{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkDir, User: c.User,
	}, c.Architecture)
	check(tb, err)
	return archive(tb, img)
}

// Variant makes an OCI archive of an image with one more label, KEY=VALUE:
// another image with the same files.
func Variant(tb testing.TB, dir, image, label string) string {
	tb.Helper()
	img, err := Image(tb.Context(), dir, image)
	check(tb, err)
	cf, err := img.ConfigFile()
	check(tb, err)
	cf = cf.DeepCopy()
	if cf.Config.Labels == nil {
		cf.Config.Labels = map[string]string{}
	}
	key, value, _ := strings.Cut(label, "=")
	cf.Config.Labels[key] = value
	img, err = mutate.ConfigFile(img, cf)
	check(tb, err)
	return archive(tb, img)
}

// archive writes an OCI archive that goes with the test.
func archive(tb testing.TB, img v1.Image) string {
	tb.Helper()
	dir := tb.TempDir()
	check(tb, writeLayout(filepath.Join(dir, "layout"), img))
	out := filepath.Join(dir, "image.oci.tar")
	check(tb, tarTree(filepath.Join(dir, "layout"), out))
	return out
}

// Registry starts an empty registry on loopback, which keeps its images in
// memory and speaks plain HTTP, and returns its HOST:PORT.
func Registry(tb testing.TB) string {
	tb.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	tb.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// Push makes an image and pushes it as ref: HOST:PORT/REPOSITORY[:TAG].
func Push(ctx context.Context, dir, image, ref string) error {
	img, err := Image(ctx, dir, image)
	if err != nil {
		return err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	return remote.Write(r, img, remote.WithContext(ctx))
}

// Serve pushes an image to a registry of its own and returns its reference.
func Serve(tb testing.TB, dir, image string) string {
	tb.Helper()
	ref := Registry(tb) + "/test/" + image + ":latest"
	check(tb, Push(tb.Context(), dir, image, ref))
	return ref
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
