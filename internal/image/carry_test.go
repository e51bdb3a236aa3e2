package image

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/fcvm/fcvm/internal/progress"
)

// An archive of somebody else's brings the image that it is asked for, and gives
// no name here another meaning.
func TestLoadDigestTakesOneImageAndNoNames(t *testing.T) {
	noCredentials(t)
	a, b := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}), newImage(t, runtime.GOARCH, map[string]string{"f": "2"})
	s := openStore(t)
	layout := "oci:" + writeLayout(t, map[string]v1.Image{"a": a, "b": b})
	var saving []Saving
	var disks [][]byte
	for _, ref := range []string{layout + ":a", layout + ":b"} {
		img, err := s.Ensure(t.Context(), ref, EnsureOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer img.Release()
		disk, err := os.ReadFile(img.Disk)
		if err != nil {
			t.Fatal(err)
		}
		saving, disks = append(saving, Saving{Digest: img.Digest, Names: []string{"docker.io/library/debian:latest"}}), append(disks, disk)
	}
	archive := save(t, s, FormatOCI, saving...)
	there := openStore(t)
	got, err := there.LoadDigest(t.Context(), open(t, archive), saving[0].Digest, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if disk, err := os.ReadFile(got.Disk); err != nil || !bytes.Equal(disk, disks[0]) {
		t.Errorf("it is another disk: %v", err)
	}
	list, err := there.List()
	if err != nil || len(list) != 1 || list[0].Digest != saving[0].Digest || len(list[0].Names) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := there.LoadDigest(t.Context(), open(t, archive), "sha256:"+strings.Repeat("0", 64), progress.Discard); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that is not in it: %v", err)
	}
	for _, bad := range []string{"", "debian", "sha256:../../x"} {
		if _, err := there.LoadDigest(t.Context(), open(t, archive), bad, progress.Discard); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := os.WriteFile(archive, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := there.LoadDigest(t.Context(), open(t, archive), saving[1].Digest, progress.Discard); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no archive: %v", err)
	}
}
