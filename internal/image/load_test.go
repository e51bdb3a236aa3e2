package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/fcvm/fcvm/internal/progress"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func load(t *testing.T, s *Store, path string) []Loaded {
	t.Helper()
	list, err := s.Load(context.Background(), open(t, path), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func save(t *testing.T, s *Store, format Format, images ...Saving) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "saved.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := s.Save(context.Background(), f, images, format, progress.Discard); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSaveAndLoad takes images through archives into other caches: they stay
// the same, with their names, and what is saved twice is the same.
func TestSaveAndLoad(t *testing.T) {
	noCredentials(t)
	a := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}, map[string]string{"g": "2"}, map[string]string{"g": "2"})
	b := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}, map[string]string{"h": "3"})
	r := startRegistry(t)
	s := openStore(t)
	for ref, img := range map[string]v1.Image{r.push(t, "a:v1", a): a, r.push(t, "b:v1", b): b} {
		got, err := s.Ensure(context.Background(), ref, EnsureOptions{})
		if err != nil || got.Digest != configDigest(t, img) {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	what := []Saving{
		{Digest: configDigest(t, a), Names: []string{"docker.io/library/a:1", "quay.io/org/a:2"}},
		{Digest: configDigest(t, b)},
	}
	for _, format := range []Format{FormatDocker, FormatOCI} {
		path := save(t, s, format, what...)
		first, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(save(t, s, format, what...)); err != nil || !bytes.Equal(first, again) {
			t.Errorf("%s: saved twice it is not the same, %v", format, err)
		}
		other := openStore(t)
		list := load(t, other, path)
		if len(list) != 2 || list[0].Digest != what[0].Digest || !slices.Equal(list[0].Names, what[0].Names) || list[1].Digest != what[1].Digest || len(list[1].Names) != 0 {
			t.Errorf("%s: %+v", format, list)
		}
		img, err := other.Ensure(context.Background(), "a:1", EnsureOptions{Pull: PullNever})
		if err != nil || img.Digest != what[0].Digest || catDisk(t, img.Disk, "g") != "2" {
			t.Errorf("%s: %+v, %v", format, img, err)
		}
		img.Release()
		checkClean(t, other, 2)
		for _, ref := range []string{what[1].Digest, hexOf(what[1].Digest)[:12]} {
			if e, err := other.Find(ref, ""); err != nil || e.Digest != what[1].Digest || len(e.Layers) != 2 {
				t.Errorf("%s: %s: %+v, %v", format, ref, e, err)
			}
		}
		// What Docker and Podman wrote comes in through the same door; skopeo speaks for them.
		skopeo(t, map[Format]string{FormatDocker: "docker-archive:", FormatOCI: "oci-archive:"}[format]+path)
	}
}

func skopeo(t *testing.T, ref string) {
	t.Helper()
	program, err := exec.LookPath("skopeo")
	if err != nil {
		t.Log("skopeo is not installed: it is not asked")
		return
	}
	switch transport, path, _ := strings.Cut(ref, ":"); transport {
	case "docker-archive":
		ref += ":docker.io/library/a:1"
	case "oci-archive":
		ref = transport + ":" + path + ":docker.io/library/a:1"
	}
	if out, err := exec.Command(program, "copy", "--quiet", "--insecure-policy", ref, "dir:"+t.TempDir()).CombinedOutput(); err != nil {
		t.Errorf("skopeo copy %s: %v: %s", ref, err, out)
	}
}

// TestLoadCompressed reads archives through pipes, compressed in all the ways
// that docker load knows.
func TestLoadCompressed(t *testing.T) {
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	path := writeDocker(t, "localhost/app:v1", img)
	for _, program := range []string{"cat", "gzip", "zstd", "xz", "bzip2"} {
		t.Run(program, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("%s is not installed", program)
			}
			cmd := exec.Command(program)
			cmd.Stdin = open(t, path)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			cmd.Stdout = w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			s := openStore(t)
			list, err := s.Load(context.Background(), r, LoadOptions{})
			if err := errors.Join(err, cmd.Wait()); err != nil {
				t.Fatal(err)
			}
			if len(list) != 1 || list[0].Digest != configDigest(t, img) || !slices.Equal(list[0].Names, []string{"localhost/app:v1"}) {
				t.Errorf("%+v", list)
			}
			checkClean(t, s, 1)
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	s := openStore(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "root.tar")
	if err := os.WriteFile(root, tarOf(t, map[string]string{"bin/sh": "x"}), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{root: "fcvm image import", text: "tar archive"} {
		_, err := s.Load(context.Background(), open(t, path), LoadOptions{})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %v that says %q", err, ErrCorrupt, says)
		}
	}
	// Nothing comes in, and the context ends: it is not waited for.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Load(ctx, r, LoadOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestImportForVariant: what is imported, loaded or tagged for a platform with
// a variant is found by those who say none, and by those who say that one.
func TestImportForVariant(t *testing.T) {
	noCredentials(t)
	s := openStore(t)
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, tarOf(t, map[string]string{"bin/sh": "x"}), 0o600); err != nil {
		t.Fatal(err)
	}
	const v8 = "linux/arm64/v8"
	if _, err := s.Import(context.Background(), open(t, root), root, ImportOptions{LoadOptions: LoadOptions{Platform: v8}, Name: "imported"}); err != nil {
		t.Fatal(err)
	}
	archive := writeDocker(t, "loaded", newImage(t, "arm64", map[string]string{"f": "1"}))
	if _, err := s.Load(context.Background(), open(t, archive), LoadOptions{Platform: v8}); err != nil {
		t.Fatal(err)
	}
	e, err := s.Find("imported", v8)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(e, "tagged"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"imported", "loaded", "tagged"} {
		for _, platform := range []string{"linux/arm64", v8} {
			img, err := s.Ensure(context.Background(), ref, EnsureOptions{Pull: PullNever, Platform: platform})
			if err != nil {
				t.Errorf("%s for %s: %v", ref, platform, err)
			}
			img.Release()
		}
	}
	if _, err := s.Ensure(context.Background(), "imported", EnsureOptions{Pull: PullNever, Platform: "linux/arm64/v9"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("another variant: %v", err)
	}
}

func TestImport(t *testing.T) {
	noCredentials(t)
	s := openStore(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "sh"), []byte("shell"), 0o755); err != nil {
		t.Fatal(err)
	}
	changes := []string{`CMD ["/bin/sh", "-l"]`, "ENV A=b", "ENV=C=d", "WORKDIR /bin", "USER 7:8", "LABEL k=v", "EXPOSE 80/tcp", "VOLUME /data"}
	o := ImportOptions{Name: "root:1", Changes: changes}
	for _, source := range []string{dir, tarDir(t, dir), tarDir(t, dir, "--gzip")} {
		var l Loaded
		var err error
		if source == dir {
			l, err = s.ImportDir(context.Background(), dir, o)
		} else {
			l, err = s.Import(context.Background(), open(t, source), source, o)
		}
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		img, err := s.Ensure(context.Background(), "root:1", EnsureOptions{Pull: PullNever})
		if err != nil {
			t.Fatal(err)
		}
		c := img.Config
		if img.Digest != l.Digest || !slices.Equal(c.Cmd, []string{"/bin/sh", "-l"}) || !slices.Equal(c.Env, []string{"A=b", "C=d"}) || c.WorkDir != "/bin" || c.User != "7:8" || c.Labels["k"] != "v" || !slices.Equal(c.Volumes, []string{"/data"}) {
			t.Errorf("%s: %+v", source, img)
		}
		if got := catDisk(t, img.Disk, "bin/sh"); got != "shell" {
			t.Errorf("%s: %q", source, got)
		}
		img.Release()
		e, err := s.Find("root:1", "")
		if err != nil {
			t.Fatal(err)
		}
		if d, err := s.Details(context.Background(), e); err != nil || len(d.History) != 1 || d.History[0].Layer != 0 || !slices.Equal(d.Ports, []string{"80/tcp"}) {
			t.Errorf("%s: %+v, %v", source, d, err)
		}
	}
	// An archive that is an image already.
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	for _, path := range []string{writeDocker(t, "x:1", img), tarDir(t, writeLayout(t, map[string]v1.Image{"": img}))} {
		l, err := s.Import(context.Background(), open(t, path), path, ImportOptions{Name: "mine"})
		if err != nil || l.Digest != configDigest(t, img) || !slices.Equal(l.Names, []string{"docker.io/library/mine:latest"}) {
			t.Errorf("%+v, %v", l, err)
		}
	}
	for _, bad := range []string{"CMD", "RUN x", "ENV", "CMD [1]", "LABEL x"} {
		if _, err := parseChanges([]string{bad}); !errors.Is(err, ErrReference) {
			t.Errorf("--change %q: %v", bad, err)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty.tar")
	var b bytes.Buffer
	if err := tar.NewWriter(&b).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), open(t, empty), empty, ImportOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an empty archive: %v", err)
	}
}

// TestVerify flips one bit of each thing that the cache has of an image. It is
// found, and made good where that is possible.
func TestVerify(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": random(t, 50_000)}, map[string]string{"g": "1"})
	ref := r.push(t, "app:v1", img)
	digest, _ := onlyLayer(t, img)
	pulled := openStore(t)
	if _, err := pulled.Ensure(context.Background(), ref, EnsureOptions{}); err != nil {
		t.Fatal(err)
	}
	archive := writeDocker(t, "app:v1", img)
	loaded := openStore(t)
	load(t, loaded, archive)
	converted := openStore(t)
	if _, err := converted.Ensure(context.Background(), "docker-archive:"+archive, EnsureOptions{}); err != nil {
		t.Fatal(err)
	}
	blobOf := func(s *Store) string { return s.blob(digest) }
	diskOf := func(s *Store) string { return filepath.Join(s.entry(configDigest(t, img)), diskName) }
	configOf := func(s *Store) string { return filepath.Join(s.entry(configDigest(t, img)), configName) }
	for _, tt := range []struct {
		name   string
		s      *Store
		file   func(*Store) string
		damage string
		heals  bool
	}{
		{"a layer", pulled, blobOf, "layer " + short(digest), true},
		{"the disk", pulled, diskOf, "disk", true},
		{"the configuration", pulled, configOf, "configuration", true},
		{"the disk of a loaded image", loaded, diskOf, "disk", true},
		{"a layer of a loaded image", loaded, blobOf, "layer " + short(digest), false},
		{"the disk of an archive's image", converted, diskOf, "disk", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := tt.s.List()
			if err != nil || len(list) != 1 {
				t.Fatalf("%v, %v", list, err)
			}
			e := list[0]
			if v, err := tt.s.Verify(context.Background(), e, VerifyOptions{}); err != nil || len(v.Damage) != 0 {
				t.Fatalf("before: %+v, %v", v, err)
			}
			flipBit(t, tt.file(tt.s))
			for _, checkOnly := range []bool{true, false} {
				v, err := tt.s.Verify(context.Background(), e, VerifyOptions{CheckOnly: checkOnly})
				if !slices.Equal(v.Damage, []string{tt.damage}) || v.Healed != (tt.heals && !checkOnly) || (err == nil) != (tt.heals || checkOnly) {
					t.Errorf("check only %v: %+v, %v", checkOnly, v, err)
				}
			}
			v, err := tt.s.Verify(context.Background(), e, VerifyOptions{CheckOnly: true})
			if err != nil || (len(v.Damage) == 0) != tt.heals {
				t.Errorf("after: %+v, %v", v, err)
			}
			checkClean(t, tt.s, 1)
		})
	}
}

// flipBit changes one bit in the middle of a file, of what is no hole.
func flipBit(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	at := len(b) / 2
	for b[at] == 0 {
		at++
	}
	if _, err := f.WriteAt([]byte{b[at] ^ 1}, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedLayerIsFetchedAgain: a layer that was damaged in the cache does
// not spoil the image that needs it next.
func TestDamagedLayerIsFetchedAgain(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	base := map[string]string{"f": random(t, 50_000)}
	a, b := newImage(t, runtime.GOARCH, base), newImage(t, runtime.GOARCH, base, map[string]string{"g": "1"})
	refA, refB := r.push(t, "a:v1", a), r.push(t, "b:v1", b)
	s := openStore(t)
	if _, err := s.Ensure(context.Background(), refA, EnsureOptions{}); err != nil {
		t.Fatal(err)
	}
	digest, _ := onlyLayer(t, a)
	flipBit(t, s.blob(digest))
	var p recorder
	img, err := s.Ensure(context.Background(), refB, EnsureOptions{Progress: &p})
	if err != nil || catDisk(t, img.Disk, "g") != "1" || len(p.notes) != 1 {
		t.Errorf("%+v, %v, %q", img, err, p.notes)
	}
	if p.open != 0 {
		t.Errorf("%d tasks were not ended", p.open)
	}
}
