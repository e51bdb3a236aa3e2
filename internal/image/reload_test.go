package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// sound fails if an image is not as it should be, or lacks layers.
func sound(t *testing.T, s *Store, digest string, layers int) {
	t.Helper()
	e, err := s.Find(digest, "")
	if err != nil || len(e.Layers) != layers {
		t.Fatalf("%d layers, want %d; %v", len(e.Layers), layers, err)
	}
	if v, err := s.Verify(context.Background(), e, VerifyOptions{CheckOnly: true}); err != nil || len(v.Damage) > 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestKeepChecksLayers: layers that come beside a disk which is there already
// are checked as those of which a disk is made.
func TestKeepChecksLayers(t *testing.T) {
	noCredentials(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": random(t, 50_000)})
	from := openStore(t)
	load(t, from, writeDocker(t, "app:v1", img))
	saving := Saving{Digest: configDigest(t, img), Names: []string{"docker.io/library/app:v1"}}
	for name, path := range map[string]string{
		"plain layers":      save(t, from, FormatDocker, saving),
		"compressed layers": writeDocker(t, "app:v1", img),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			if _, err := s.Ensure(context.Background(), "docker-archive:"+path, EnsureOptions{}); err != nil {
				t.Fatal(err)
			}
			flipBit(t, path)
			if _, err := s.Load(context.Background(), open(t, path), LoadOptions{}); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want %v", err, ErrCorrupt)
			}
			sound(t, s, saving.Digest, 0) // its disk is
			flipBit(t, path)              // back
			load(t, s, path)
			sound(t, s, saving.Digest, 1)
			checkClean(t, s, 1)
		})
	}
}

// TestKeepFetchesDamagedLayers: a layer that another image has, and that was
// damaged in the cache, is fetched again.
func TestKeepFetchesDamagedLayers(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	base := map[string]string{"f": random(t, 50_000)}
	a, b := newImage(t, runtime.GOARCH, base), newImage(t, runtime.GOARCH, base, map[string]string{"g": "1"})
	s := openStore(t)
	for _, ref := range []string{r.push(t, "a:v1", a), "docker-archive:" + writeDocker(t, "b:v1", b)} {
		if _, err := s.Ensure(context.Background(), ref, EnsureOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	digest, _ := onlyLayer(t, a)
	flipBit(t, s.blob(digest))
	if _, err := s.Ensure(context.Background(), r.push(t, "b:v1", b), EnsureOptions{}); err != nil {
		t.Fatal(err)
	}
	sound(t, s, configDigest(t, b), 2)
}

// TestLoadAgain: what has been damaged in the cache is replaced by loading the
// image again, as Verify says.
func TestLoadAgain(t *testing.T) {
	img := newImage(t, runtime.GOARCH, map[string]string{"f": random(t, 50_000)}, map[string]string{"g": "1"})
	id := configDigest(t, img)
	digest, _ := onlyLayer(t, img)
	config := func(s *Store) string { return filepath.Join(s.entry(id), configName) }
	remove := func(t *testing.T, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(*testing.T, *Store)
	}{
		{"nothing", func(*testing.T, *Store) {}},
		{"a layer damaged", func(t *testing.T, s *Store) { flipBit(t, s.blob(digest)) }},
		{"a layer missing", func(t *testing.T, s *Store) { remove(t, s.blob(digest)) }},
		{"the configuration damaged", func(t *testing.T, s *Store) { flipBit(t, config(s)) }},
		{"the configuration missing", func(t *testing.T, s *Store) { remove(t, config(s)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			archive, layout := writeDocker(t, "app:v1", img), writeLayout(t, map[string]v1.Image{"": img})
			for _, again := range []func(*Store) error{
				func(s *Store) error {
					_, err := s.Load(context.Background(), open(t, archive), LoadOptions{})
					return err
				},
				func(s *Store) error {
					_, err := s.ImportDir(context.Background(), layout, ImportOptions{})
					return err
				},
			} {
				s := openStore(t)
				load(t, s, archive)
				tt.damage(t, s)
				if err := again(s); err != nil {
					t.Fatal(err)
				}
				sound(t, s, id, 2)
				checkClean(t, s, 1)
			}
		})
	}
}
