package image

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestEnsureShortID: what image ls shows as an id is that image, whatever
// registries there are; a name that is given here counts for more, and what is
// no id here is a name.
func TestEnsureShortID(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	writeConf(t, `unqualified-search-registries = ["`+r.host+`"]`)
	r.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "there is no such image", http.StatusNotFound)
		return true
	}
	s := openStore(t)
	img, other := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}), newImage(t, runtime.GOARCH, map[string]string{"f": "2"})
	for _, i := range []v1.Image{img, other} {
		held, err := s.Ensure(context.Background(), "oci:"+writeLayout(t, map[string]v1.Image{"": i}), EnsureOptions{})
		if err != nil {
			t.Fatal(err)
		}
		held.Release()
	}
	id := configDigest(t, img)
	for _, pull := range []Pull{"", PullMissing, PullNever} {
		for _, n := range []int{12, 64} {
			got, err := s.Ensure(context.Background(), hexOf(id)[:n], EnsureOptions{Pull: pull})
			if err != nil || got.Digest != id {
				t.Errorf("--pull %s, %d digits: %+v, %v", pull, n, got, err)
			}
			got.Release()
		}
	}
	if n := r.requests.Load(); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
	none := "0000" // of a name that could be an id's beginning
	for hexOf(id)[:4] == none || hexOf(configDigest(t, other))[:4] == none {
		none += "0"
	}
	if _, err := s.Ensure(context.Background(), none, EnsureOptions{}); !errors.Is(err, ErrNotFound) || r.requests.Load() == 0 {
		t.Errorf("no id: %v after %d requests", err, r.requests.Load())
	}
	e, err := s.Find(configDigest(t, other), "")
	if err == nil {
		err = s.Tag(e, hexOf(id)[:12])
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Ensure(context.Background(), hexOf(id)[:12], EnsureOptions{}); err != nil || got.Digest != e.Digest {
		t.Errorf("a name that was given here: %+v, %v", got, err)
	}
}
