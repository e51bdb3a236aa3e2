package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func twoLayers(t *testing.T) v1.Image {
	return newImage(t, runtime.GOARCH, map[string]string{"entry": "#!base", "both": "1"}, map[string]string{"both": "2"})
}

func TestEnsureEverySource(t *testing.T) {
	img := twoLayers(t)
	dir := writeLayout(t, map[string]v1.Image{"app:v1": img})
	archive := tarDir(t, dir)
	zipped := archive + ".gz"
	if out, err := exec.Command("gzip", "-k", archive).CombinedOutput(); err != nil {
		t.Fatalf("gzip: %v: %s", err, out)
	}
	docker := writeDocker(t, "example.com/app:v1", img)
	for _, ref := range []string{
		"oci:" + dir, "oci:" + dir + ":app:v1", "oci-archive:" + archive, "oci-archive:" + archive + ":app:v1",
		"oci-archive:" + zipped, "docker-archive:" + docker, "docker-archive:" + docker + ":example.com/app:v1",
	} {
		s := openStore(t)
		var p recorder
		got, err := s.Ensure(context.Background(), ref, EnsureOptions{Progress: &p})
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		want := Image{
			Reference: ref, Digest: configDigest(t, img), Size: got.Size, Disk: got.Disk,
			Config: Config{
				Entrypoint: []string{"/entry"}, Cmd: []string{"arg"}, Env: []string{"PATH=/bin", "A=b"},
				WorkDir: "/work", User: "nobody", Labels: map[string]string{"l": "v"}, Volumes: []string{"/a", "/z"},
				StopSignal: "SIGQUIT", Health: &Health{Test: []string{"CMD", "true"}, Interval: time.Second, Retries: 2},
			},
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Image{})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", ref, diff)
		}
		if both := catDisk(t, got.Disk, "both"); both != "2" {
			t.Errorf("%s: the upper layer's file is %q", ref, both)
		}
		if p.open != 0 || p.count("convert") != 1 {
			t.Errorf("%s: %d unfinished tasks, %d conversions", ref, p.open, p.count("convert"))
		}
		checkClean(t, s, 1)
		again, err := s.Ensure(context.Background(), ref, EnsureOptions{Progress: &p, Pull: PullNever})
		want.Cached, want.Size = true, got.Size
		if diff := cmp.Diff(want, again, cmpopts.IgnoreUnexported(Image{})); err != nil || diff != "" {
			t.Errorf("%s again: %v (-want +got)\n%s", ref, err, diff)
		}
	}
}

func TestEnsureOneDiskForAllSources(t *testing.T) {
	img := twoLayers(t)
	s := openStore(t)
	dir := writeLayout(t, map[string]v1.Image{"": img})
	first, err := s.Ensure(context.Background(), "oci:"+dir, EnsureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Ensure(context.Background(), "docker-archive:"+writeDocker(t, "x", img), EnsureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !second.Cached || second.Disk != first.Disk {
		t.Errorf("converted twice: %+v, %+v", first, second)
	}
	checkClean(t, s, 1)
}

func TestEnsureModes(t *testing.T) {
	s := openStore(t)
	img, err := s.Ensure(context.Background(), "oci:"+writeLayout(t, map[string]v1.Image{"": twoLayers(t)}), EnsureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.Walk(filepath.Dir(s.dir), func(p string, st os.FileInfo, err error) error {
		if err == nil && p != filepath.Dir(s.dir) && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", p, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A disk that was cut off is made again.
	if err := os.Truncate(img.Disk, 4096); err != nil {
		t.Fatal(err)
	}
	again, err := s.Ensure(context.Background(), img.Reference, EnsureOptions{})
	if err != nil || again.Cached || catDisk(t, again.Disk, "both") != "2" {
		t.Errorf("a damaged disk: %v, cached %v", err, again.Cached)
	}
}

func TestEnsureSeveralInOneFile(t *testing.T) {
	a, b := newImage(t, runtime.GOARCH, map[string]string{"f": "a"}), newImage(t, runtime.GOARCH, map[string]string{"f": "b"})
	dir := writeLayout(t, map[string]v1.Image{"docker.io/library/a:latest": a, "b:1": b})
	s := openStore(t)
	got, err := s.Ensure(context.Background(), "oci:"+dir+":a", EnsureOptions{}) // by its short name
	if err != nil || got.Digest != configDigest(t, a) {
		t.Errorf("a: %v, digest %s", err, got.Digest)
	}
	_, err = s.Ensure(context.Background(), "oci:"+dir, EnsureOptions{})
	if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), "b:1") {
		t.Errorf("no name: %v", err)
	}
	_, err = s.Ensure(context.Background(), "oci:"+dir+":c", EnsureOptions{})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "b:1") {
		t.Errorf("wrong name: %v", err)
	}
}

func TestEnsurePlatform(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	mine, theirs := newImage(t, runtime.GOARCH, map[string]string{"f": "mine"}), newImage(t, other, map[string]string{"f": "theirs"})
	s := openStore(t)
	single := "oci:" + writeLayout(t, map[string]v1.Image{"": theirs})
	for range 2 { // the second time a disk may be there
		_, err := s.Ensure(context.Background(), single, EnsureOptions{})
		if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/"+other) {
			t.Errorf("an image of another architecture: %v", err)
		}
		if _, err := s.Ensure(context.Background(), single, EnsureOptions{Platform: "linux/" + other}); err != nil {
			t.Error(err)
		}
	}
	dir := writeIndex(t, map[string]v1.Image{runtime.GOARCH: mine, other: theirs})
	for platform, want := range map[string]v1.Image{"": mine, "linux/" + runtime.GOARCH: mine, "linux/" + other: theirs} {
		got, err := s.Ensure(context.Background(), "oci:"+dir, EnsureOptions{Platform: platform})
		if err != nil || got.Digest != configDigest(t, want) {
			t.Errorf("platform %q: %v, digest %s", platform, err, got.Digest)
		}
	}
	for _, platform := range []string{"linux/s390x", "windows/amd64", "amd64", "linux//x"} {
		if _, err := s.Ensure(context.Background(), "oci:"+dir, EnsureOptions{Platform: platform}); !errors.Is(err, ErrPlatform) {
			t.Errorf("platform %q: %v", platform, err)
		}
	}
}

func TestEnsureRefuses(t *testing.T) {
	img := twoLayers(t)
	dir := writeLayout(t, map[string]v1.Image{"": img})
	archive := tarDir(t, dir)
	whole, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) string {
		p := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	// A layer whose bytes were replaced, with the same length.
	damaged := writeLayout(t, map[string]v1.Image{"": img})
	blob := filepath.Join(damaged, blobName(digest))
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(blob, b, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := writeLayout(t, map[string]v1.Image{"": img})
	if err := os.Remove(filepath.Join(missing, blobName(digest))); err != nil {
		t.Fatal(err)
	}
	unsafe := newImage(t, runtime.GOARCH, map[string]string{"a/../../x": ""})
	bomb := newImage(t, runtime.GOARCH, map[string]string{"zeros": string(make([]byte, 4<<20))})
	tests := []struct {
		name, ref string
		want      error
		says      string
	}{
		{"no file", "oci-archive:/nowhere.tar", ErrNotFound, "/nowhere.tar"},
		{"no directory", "oci:/nowhere", ErrNotFound, "/nowhere"},
		{"no path", "oci-archive:", ErrReference, "no file"},
		{"truncated", "oci-archive:" + write(whole[:len(whole)-5000]), ErrCorrupt, ""},
		{"truncated early", "oci-archive:" + write(whole[:700]), ErrCorrupt, ""},
		{"truncated Docker archive", "docker-archive:" + truncated(t, writeDocker(t, "x", img)), ErrCorrupt, ""},
		{"no archive", "oci-archive:" + write(bytes.Repeat([]byte("text "), 1000)), ErrCorrupt, "tar"},
		{"empty", "docker-archive:" + write(nil), ErrCorrupt, "empty"},
		{"a device", "oci-archive:/dev/zero", ErrCorrupt, "regular"},
		{"the other kind", "docker-archive:" + tarDir(t, writeLayout(t, map[string]v1.Image{"": img})), ErrReference, "oci-archive:"},
		{"the other kind", "oci-archive:" + writeDocker(t, "x", img), ErrReference, "docker-archive:"},
		{"damaged layer", "oci:" + damaged, ErrCorrupt, ""},
		{"missing layer", "oci:" + missing, ErrCorrupt, "missing"},
		{"path with ..", "oci:" + writeLayout(t, map[string]v1.Image{"": unsafe}), ErrUnsafe, ".."},
		{"bomb", "oci:" + writeLayout(t, map[string]v1.Image{"": bomb}), ErrTooLarge, ""},
		{"bomb as an archive", "oci-archive:" + gzipFile(t, write(append(bytes.Clone(whole), make([]byte, 4<<20)...))), ErrTooLarge, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			s.Limits.Rootfs.Bytes = 1 << 20
			_, err := s.Ensure(context.Background(), tt.ref, EnsureOptions{})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.says)
			}
			checkClean(t, s, 0)
		})
	}
}

func truncated(t *testing.T, file string) string {
	t.Helper()
	st, err := os.Stat(file)
	if err == nil {
		err = os.Truncate(file, st.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func gzipFile(t *testing.T, file string) string {
	t.Helper()
	if out, err := exec.Command("gzip", file).CombinedOutput(); err != nil {
		t.Fatalf("gzip: %v: %s", err, out)
	}
	return file + ".gz"
}

// TestEnsureLayoutLinks: a layout's links do not lead out of it.
func TestEnsureLayoutLinks(t *testing.T) {
	dir := writeLayout(t, map[string]v1.Image{"": twoLayers(t)})
	outside := filepath.Join(t.TempDir(), "index.json")
	index := filepath.Join(dir, "index.json")
	if err := os.Rename(index, outside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, index); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t).Ensure(context.Background(), "oci:"+dir, EnsureOptions{}); err == nil {
		t.Error("read a file outside of the layout")
	}
}
