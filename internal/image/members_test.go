package image

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// otherArch is not this machine's.
func otherArch() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// noPlatform is an image whose configuration does not say what it is for.
func noPlatform(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "", ""
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestSaveNameless: images without a name or a platform come out of an archive
// as they went in, each for itself.
func TestSaveNameless(t *testing.T) {
	a := newImage(t, runtime.GOARCH, map[string]string{"f": "a"})
	b := newImage(t, runtime.GOARCH, map[string]string{"f": "b"})
	c := noPlatform(t, newImage(t, "", map[string]string{"f": "c"}))
	s := openStore(t)
	for _, img := range []v1.Image{a, b, c} {
		load(t, s, writeDocker(t, "x:1", img))
	}
	one, two, three := Saving{Digest: configDigest(t, a)}, Saving{Digest: configDigest(t, b)}, Saving{Digest: configDigest(t, c)}
	named := three
	named.Names = []string{"docker.io/library/c:1", "docker.io/library/c:2"}
	for _, what := range [][]Saving{{one, two}, {two, three, one}, {three}, {named}, {one, named}} {
		for _, format := range []Format{FormatDocker, FormatOCI} {
			path := save(t, s, format, what...)
			var want, got []string
			for _, w := range what {
				want = append(want, w.Digest+strings.Join(w.Names, ","))
			}
			for _, l := range load(t, openStore(t), path) {
				got = append(got, l.Digest+strings.Join(l.Names, ","))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", format, got, want)
			}
		}
	}
	path := save(t, s, FormatOCI, one, two)
	if _, err := s.Ensure(context.Background(), "oci-archive:"+path, EnsureOptions{}); !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), "image load") {
		t.Errorf("which of two is not said: %v", err)
	}
	single := save(t, s, FormatOCI, three)
	if img, err := s.Ensure(context.Background(), "oci-archive:"+single, EnsureOptions{}); err != nil || img.Digest != three.Digest {
		t.Errorf("%+v, %v", img, err)
	}
}

// TestLoadNamelessWithPlatforms: entries of a layout without a name are one
// image for several platforms, but not if their platforms are the same.
func TestLoadNamelessWithPlatforms(t *testing.T) {
	a, b := newImage(t, runtime.GOARCH, map[string]string{"f": "a"}), newImage(t, runtime.GOARCH, map[string]string{"f": "b"})
	other := newImage(t, otherArch(), map[string]string{"f": "a"})
	attestation := mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json")
	for _, tt := range []struct {
		images    []v1.Image
		platforms []v1.Platform
		want      []v1.Image
	}{
		{[]v1.Image{other, a}, []v1.Platform{{OS: "linux", Architecture: otherArch()}, {OS: "linux", Architecture: runtime.GOARCH}}, []v1.Image{a}},
		{[]v1.Image{a, b}, []v1.Platform{{OS: "linux", Architecture: runtime.GOARCH}, {OS: "linux", Architecture: runtime.GOARCH}}, []v1.Image{a, b}},
		{[]v1.Image{a, b}, []v1.Platform{{}, {}}, []v1.Image{a, b}},
		{
			[]v1.Image{attestation, a, attestation},
			[]v1.Platform{{OS: "unknown", Architecture: "unknown"}, {OS: "linux", Architecture: runtime.GOARCH}, {OS: "unknown", Architecture: "unknown"}},
			[]v1.Image{a},
		},
	} {
		dir := filepath.Join(t.TempDir(), "layout")
		p, err := layout.Write(dir, empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		for i, img := range tt.images {
			if err := p.AppendImage(img, layout.WithPlatform(tt.platforms[i])); err != nil {
				t.Fatal(err)
			}
		}
		var got, want []string
		list, err := openStore(t).LoadDir(context.Background(), dir, LoadOptions{})
		for _, l := range list {
			got = append(got, l.Digest)
		}
		for _, img := range tt.want {
			want = append(want, configDigest(t, img))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v: got %q, want %q; %v", tt.platforms, got, want, err)
		}
	}
}

// TestLoadSkipsOtherPlatforms: an archive's images that run here are loaded,
// whatever else it holds.
func TestLoadSkipsOtherPlatforms(t *testing.T) {
	mine, other := newImage(t, runtime.GOARCH, map[string]string{"f": "a"}), newImage(t, otherArch(), map[string]string{"f": "a"})
	archive := func(images map[string]v1.Image) string {
		tags := map[name.Tag]v1.Image{}
		for n, img := range images {
			tag, err := name.NewTag(n)
			if err != nil {
				t.Fatal(err)
			}
			tags[tag] = img
		}
		path := filepath.Join(t.TempDir(), "docker.tar")
		if err := tarball.MultiWriteToFile(path, tags); err != nil {
			t.Fatal(err)
		}
		return path
	}
	layoutOf := func(images map[string]v1.Image) string {
		dir := filepath.Join(t.TempDir(), "layout")
		p, err := layout.Write(dir, empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range slices.Sorted(maps.Keys(images)) {
			cf, err := images[n].ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			o := []layout.Option{
				layout.WithAnnotations(map[string]string{annotationName: n}),
				layout.WithPlatform(v1.Platform{OS: "linux", Architecture: cf.Architecture}),
			}
			if err := p.AppendImage(images[n], o...); err != nil {
				t.Fatal(err)
			}
		}
		return tarDir(t, dir)
	}
	for form, write := range map[string]func(map[string]v1.Image) string{"Docker's": archive, "OCI": layoutOf} {
		t.Run(form, func(t *testing.T) {
			both := map[string]v1.Image{"docker.io/library/app:1": other, "docker.io/library/app:2": mine, "docker.io/library/app:3": other}
			s := openStore(t)
			var p recorder
			list, err := s.Load(context.Background(), open(t, write(both)), LoadOptions{Progress: &p})
			if err != nil || len(list) != 1 || list[0].Digest != configDigest(t, mine) || !slices.Equal(list[0].Names, []string{"docker.io/library/app:2"}) {
				t.Errorf("%+v, %v", list, err)
			}
			if len(p.notes) != 1 && len(p.notes) != 2 || !strings.Contains(p.notes[0], "library/app:") || !strings.Contains(p.notes[0], otherArch()) {
				t.Errorf("notes: %q", p.notes)
			}
			delete(both, "docker.io/library/app:2")
			if list, err := s.Load(context.Background(), open(t, write(both)), LoadOptions{}); !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "library/app:") || len(list) > 0 {
				t.Errorf("none that runs: %+v, %v", list, err)
			}
			checkClean(t, s, 1)
		})
	}
}
