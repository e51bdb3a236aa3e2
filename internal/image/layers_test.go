package image

import (
	"context"
	"errors"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/fcvm/fcvm/internal/rootfs"
)

func TestLayersCanBeReadUntilTheyAreReleased(t *testing.T) {
	img := twoLayers(t)
	s := openStore(t)
	layers, release, err := s.Layers(context.Background(), "oci:"+writeLayout(t, map[string]v1.Image{"app:v1": img}), EnsureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		missing, err := rootfs.Missing(context.Background(), layers, []string{"entry", "both", "nope"}, rootfs.Options{})
		if err != nil || !slices.Equal(missing, []string{"nope"}) {
			t.Errorf("missing in the layers: %q, %v", missing, err)
		}
	}
	release()
	checkClean(t, s, 0)
}

func TestLayersRefusesWhatEnsureRefuses(t *testing.T) {
	s := openStore(t)
	dir := writeLayout(t, map[string]v1.Image{"app:v1": newImage(t, "s390x", map[string]string{"a": "b"})})
	for ref, want := range map[string]error{"oci:" + dir: ErrPlatform, "oci:/nonexistent": ErrNotFound, "UPPER CASE": ErrReference} {
		if _, _, err := s.Layers(context.Background(), ref, EnsureOptions{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ref, err, want)
		}
	}
	checkClean(t, s, 0)
}
