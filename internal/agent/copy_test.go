package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/treecopy"
)

// pack is a tar stream of a path of the test's own files, which are the
// container's as well.
func pack(t *testing.T, path string) io.Reader {
	t.Helper()
	s, err := treecopy.Open(treecopy.Local{}, path, treecopy.PackOptions{Sparse: true})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() {
		_ = w.CloseWithError(s.Pack(w))
		_ = s.Close()
	}()
	return r
}

func TestCopyRoundTrip(t *testing.T) {
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			g := newContainerGuest(t, carrier)
			dir := t.TempDir()
			src := filepath.Join(dir, "src")
			big := make([]byte, 8<<20)
			_, _ = rand.NewChaCha8([32]byte{}).Read(big)
			err := errors.Join(os.MkdirAll(src+"/a/b", 0o755), os.WriteFile(src+"/a/b/big", big, 0o640), os.Symlink("/none", src+"/link"))
			if err != nil {
				t.Fatal(err)
			}
			in := filepath.Join(dir, "in")
			skipped, err := g.client.CopyIn(t.Context(), agentapi.CopyRequest{Path: in}, pack(t, src))
			if err != nil || len(skipped) > 0 {
				t.Fatalf("copy in: %v, left out %q", err, skipped)
			}
			out, err := g.client.CopyOut(t.Context(), agentapi.CopyRequest{Path: in + "/.", Sparse: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = out.Close() }()
			if err := treecopy.Unpack(treecopy.Local{}, out, dir+"/out", treecopy.UnpackOptions{}); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dir + "/out/a/b/big")
			if err != nil || !bytes.Equal(got, big) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
			if to, err := os.Readlink(dir + "/out/link"); err != nil || to != "/none" {
				t.Errorf("link to %q, %v", to, err)
			}
		})
	}
}

func TestCopyRefuses(t *testing.T) {
	g := newContainerGuest(t, pipeCarrier)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir + "/none":            dir + "/none: no such file",
		dir + "/file/":           "not a directory",
		strings.Repeat("x", 5e3): "more than 4096 bytes",
	} {
		_, err := g.client.CopyOut(t.Context(), agentapi.CopyRequest{Path: path})
		var e *agentapi.Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, want) {
			t.Errorf("out of %.80s: %v, want %q", path, err, want)
		}
	}
	// The answer comes though there is no end of what is sent.
	endless := io.MultiReader(pack(t, dir), zeros{})
	_, err := g.client.CopyIn(t.Context(), agentapi.CopyRequest{Path: dir + "/file"}, endless)
	if err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory over a file: %v", err)
	}
	errTest := errors.New("this end fails")
	_, err = g.client.CopyIn(t.Context(), agentapi.CopyRequest{Path: dir, Extract: true}, io.MultiReader(pack(t, dir+"/."), failing{errTest}))
	if !errors.Is(err, errTest) {
		t.Errorf("a stream that cannot be read: %v", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "../x", Typeflag: tar.TypeReg}), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.client.CopyIn(t.Context(), agentapi.CopyRequest{Path: dir, Extract: true}, &b); err == nil {
		t.Error("a hostile stream was taken")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A copy that fails in the middle is no short stream.
func TestCopyOutThatFailsInTheMiddle(t *testing.T) {
	g := newContainerGuest(t, pipeCarrier)
	// What comes behind the body has the rules of a header; a name has none.
	for _, name := range []string{"top", "t\x01\x1b[1m\r\nX: y\xff"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.MkdirAll(dir+strings.Repeat("/d", 600), 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := g.client.CopyOut(t.Context(), agentapi.CopyRequest{Path: dir})
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, out)
		_ = out.Close()
		var e *agentapi.Error
		if !errors.As(err, &e) || errors.Is(err, agentclient.ErrLost) || !strings.Contains(e.Message, "directories in one another") {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

// An error tells of a path, which may be longer than what comes behind a body.
func TestTrailerIsBounded(t *testing.T) {
	got := trailer(errors.New(strings.Repeat("x", 8<<10) + " changed while it was copied"))
	if len(got) > 3<<10 || !strings.HasPrefix(got, "xx") || !strings.HasSuffix(got, "x changed while it was copied") {
		t.Errorf("%d bytes: %.10q", len(got), got)
	}
}

func TestCopyNeedsARunningContainer(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	_, err := g.client.CopyOut(t.Context(), agentapi.CopyRequest{Path: "/etc"})
	if err == nil || !strings.Contains(err.Error(), errNotRunning.Error()) {
		t.Errorf("out: %v", err)
	}
	_, err = g.client.CopyIn(t.Context(), agentapi.CopyRequest{Path: "/etc"}, strings.NewReader("x"))
	if err == nil || !strings.Contains(err.Error(), errNotRunning.Error()) {
		t.Errorf("in: %v", err)
	}
}

func TestTreeIsAView(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(os.MkdirAll(dir+"/root/real", 0o755), os.Symlink("/real", dir+"/root/abs"), os.Symlink("../..", dir+"/root/up"),
		os.WriteFile(dir+"/root/real/x", nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	root, err := openTree(dir + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.close() }()
	for path, has := range map[string]string{"/abs": "x", "abs/": "x", "/up": "real", "/up/../abs": "x", "..": "real", "/": "real"} {
		d, err := root.Dir(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if _, err := d.Lstat(has); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := d.Lstat("../root"); err == nil {
			t.Errorf("%s: it is not closed", path)
		}
		_ = d.Close()
	}
	if _, err := root.Dir("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
}
