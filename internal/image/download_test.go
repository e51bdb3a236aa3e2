package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// onlyLayer is the digest and size of an image's layer.
func onlyLayer(t *testing.T, img v1.Image) (string, int64) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String(), size
}

// random is content that does not compress.
func random(t *testing.T, n int) string {
	t.Helper()
	b := make([]byte, n)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Read(b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestResume breaks a download again and again: each time it goes on where it
// was, in this process and in the next, and what comes is checked.
func TestResume(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": random(t, 300_000)})
	ref := r.push(t, "app:v1", img)
	digest, size := onlyLayer(t, img)
	var sent, requests atomic.Int64
	var ranges atomic.Value
	ranges.Store("")
	const piece = 100_000
	limit := int64(2) // requests before the registry says no more
	r.intercept = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, "/blobs/"+digest) {
			return false
		}
		if requests.Add(1) > limit {
			http.Error(w, "closed", http.StatusForbidden)
			return true
		}
		layers, err := img.Layers()
		if err != nil {
			t.Error(err)
			return false
		}
		blob, err := layers[0].Compressed()
		if err != nil {
			t.Error(err)
			return false
		}
		defer func() { _ = blob.Close() }()
		var from int64
		if h := req.Header.Get("Range"); h != "" {
			_, _ = fmt.Sscanf(h, "bytes=%d-", &from)
			ranges.Store(ranges.Load().(string) + h + " ")
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
			w.Header().Set("Content-Length", fmt.Sprint(size-from))
			w.WriteHeader(http.StatusPartialContent)
		}
		all := make([]byte, size)
		if _, err := readFull(blob, all); err != nil {
			t.Error(err)
		}
		n := min(piece, size-from)
		_, _ = w.Write(all[from : from+n])
		sent.Add(n)
		if from+n < size {
			panic(http.ErrAbortHandler)
		}
		return true
	}
	s := openStore(t)
	_, err := s.Ensure(context.Background(), ref, EnsureOptions{})
	if !errors.Is(err, ErrUnauthorized) {
		t.Fatalf("got %v, want %v", err, ErrUnauthorized)
	}
	if st, err := os.Stat(s.partial(digest)); err != nil || st.Size() != 2*piece {
		t.Fatalf("what has come is not kept: %v, %v", st, err)
	}
	limit = 100
	again, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Ensure(context.Background(), ref, EnsureOptions{})
	if err != nil || got.Cached {
		t.Fatalf("%+v, %v", got, err)
	}
	if n := sent.Load(); n != size {
		t.Errorf("%d bytes were sent, the layer has %d; ranges: %s", n, size, ranges.Load())
	}
	checkClean(t, s, 1)
	if list, err := os.ReadDir(s.join("partial")); err != nil || len(list) != 0 {
		t.Errorf("left in partial: %v, %v", list, err)
	}
}

func readFull(r interface{ Read([]byte) (int, error) }, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err != nil && n < len(b) {
			return n, err
		}
	}
	return n, nil
}

// TestResumeOfOtherBytes: a half that is damaged costs a second download, and
// no more.
func TestResumeOfOtherBytes(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": random(t, 300_000)})
	ref := r.push(t, "app:v1", img)
	digest, _ := onlyLayer(t, img)
	s := openStore(t)
	if err := os.WriteFile(s.partial(digest), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(context.Background(), ref, EnsureOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestLayersAreShared fetches an image whose lower layer is there.
func TestLayersAreShared(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	base := map[string]string{"base": random(t, 100_000)}
	a, b := newImage(t, runtime.GOARCH, base), newImage(t, runtime.GOARCH, base, map[string]string{"more": "1"})
	refA, refB := r.push(t, "a:v1", a), r.push(t, "b:v1", b)
	digest, _ := onlyLayer(t, a)
	var asked atomic.Int64
	r.intercept = func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, digest) {
			asked.Add(1)
		}
		return false
	}
	s := openStore(t)
	for _, ref := range []string{refA, refB} {
		img, err := s.Ensure(context.Background(), ref, EnsureOptions{})
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the shared layer was asked for %d times", n)
	}
	// It stays as long as one of them does.
	for i, img := range []v1.Image{a, b} {
		removed, err := s.Remove(configDigest(t, img), func() (bool, error) { return false, nil })
		if err != nil || !removed {
			t.Fatalf("removed %v, %v", removed, err)
		}
		if _, err := os.Stat(s.blob(digest)); (err == nil) != (i == 0) {
			t.Errorf("after %d removals: %v", i+1, err)
		}
	}
	if list, err := os.ReadDir(s.join("blobs")); err != nil || len(list) != 0 {
		t.Errorf("left in blobs: %v, %v", list, err)
	}
}

// TestCollectSparesWhatIsFetched: while somebody fetches an image, no layer
// goes, for nothing says yet whose it will be.
func TestCollectSparesWhatIsFetched(t *testing.T) {
	s := openStore(t)
	digest := digestOf([]byte("x"))
	if err := os.WriteFile(s.blob(digest), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	fetching, err := s.useBlobs(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if done, err := s.Collect(true); done || err != nil {
		t.Errorf("collected: %v, %v", done, err)
	}
	if !s.hasBlob(digest, 1) {
		t.Error("the layer is gone")
	}
	_ = fetching.Close()
	if done, err := s.Collect(true); !done || err != nil || s.hasBlob(digest, 1) {
		t.Errorf("collected: %v, %v; still there: %v", done, err, s.hasBlob(digest, 1))
	}
}
