package image

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestSaveSaysCompression: a Docker archive does not say how its layers are
// compressed, and what an older cache says of them is not believed.
func TestSaveSaysCompression(t *testing.T) {
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}, map[string]string{"g": "2"})
	for _, tt := range []struct {
		name, path string
		want       types.MediaType
	}{
		{"gzip", writeDocker(t, "app:1", img), types.OCILayer},
		{"plain", plainDocker(t, img), types.OCIUncompressedLayer},
	} {
		s := openStore(t)
		load(t, s, tt.path)
		kept := s.keptLayers(configDigest(t, img))
		for i := range kept {
			if kept[i].MediaType != string(tt.want) {
				t.Errorf("%s: the cache has %q", tt.name, kept[i].MediaType)
			}
			kept[i].MediaType = string(types.DockerUncompressedLayer)
		}
		if err := s.writeJSON(filepath.Join(s.entry(configDigest(t, img)), layersName), layerList{Schema: recordSchema, Layers: kept}); err != nil {
			t.Fatal(err)
		}
		// The second finds its layers in the archive.
		path := save(t, s, FormatOCI, Saving{configDigest(t, img), []string{"docker.io/library/a:1"}}, Saving{configDigest(t, img), []string{"docker.io/library/b:1"}})
		c, err := s.findFile(context.Background(), reference{kind: kindOCIArchive, path: path, tag: "b:1"}, platform{os: "linux", arch: runtime.GOARCH})
		if err != nil {
			t.Fatal(err)
		}
		if len(c.layers) != 2 {
			t.Errorf("%s: %d layers", tt.name, len(c.layers))
		}
		for _, l := range c.layers {
			if l.mediaType != string(tt.want) {
				t.Errorf("%s: saved as %q", tt.name, l.mediaType)
			}
		}
		c.close()
	}
}

// plainDocker is a Docker archive whose layers are not compressed.
func plainDocker(t *testing.T, img v1.Image) string {
	t.Helper()
	s := openStore(t)
	load(t, s, writeDocker(t, "app:1", img))
	return save(t, s, FormatDocker, Saving{Digest: configDigest(t, img), Names: []string{"docker.io/library/app:1"}})
}

// TestSkopeo: an image has one id, whether fcvm wrote its archive or skopeo, and
// whoever reads it.
func TestSkopeo(t *testing.T) {
	program, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	copied := func(from, to string) {
		t.Helper()
		if out, err := exec.Command(program, "copy", "--quiet", "--insecure-policy", from, to).CombinedOutput(); err != nil {
			t.Fatalf("skopeo copy %s %s: %v: %s", from, to, err, out)
		}
	}
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"}, map[string]string{"g": "2"})
	id := configDigest(t, img)
	layout := writeLayout(t, map[string]v1.Image{"": img})
	for _, format := range []Format{FormatDocker, FormatOCI} {
		theirs := filepath.Join(t.TempDir(), "theirs.tar")
		copied("oci:"+layout, string(format)+":"+theirs+":docker.io/library/app:1")
		s := openStore(t)
		if list := load(t, s, theirs); len(list) != 1 || list[0].Digest != id {
			t.Errorf("%s: what skopeo wrote is %+v, not %s", format, list, id)
		}
		ours := save(t, s, format, Saving{Digest: id, Names: []string{"docker.io/library/app:1"}})
		dir := t.TempDir()
		copied(string(format)+":"+ours+":docker.io/library/app:1", "dir:"+dir)
		b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
		var m v1.Manifest
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil || m.Config.Digest.String() != id || len(m.Layers) != 2 {
			t.Errorf("%s: skopeo reads %s, not %s: %v", format, b, id, err)
		}
	}
}
