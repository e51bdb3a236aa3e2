package e2e

import (
	"bytes"
	"encoding/gob"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"

	"github.com/fcvm/fcvm/test/matrix"
	"github.com/fcvm/fcvm/test/tree"
)

// TestTreeInTheContainer compares what a container sees with what umoci, or
// buildah, unpacks of its image.
func TestTreeInTheContainer(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can unpack images as they are")
	}
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("umoci is not installed")
	}
	bin := filepath.Dir(buildProgram(t, "./test/tree/showtree"))
	for _, img := range matrix.Images() {
		t.Run(img.Name, func(t *testing.T) {
			layout := filepath.Join(t.TempDir(), "layout")
			if err := matrix.WriteLayout(layout, img.Layers, compression.GZip); err != nil {
				t.Fatal(err)
			}
			ref := "oci:" + layout
			if _, err := exec.LookPath("skopeo"); err == nil && !img.Large {
				ref = matrix.Archive(t, layout, "docker-archive")
			}
			compareInContainer(t, bin, ref, matrix.Unpack(t, layout))
		})
	}
	t.Run("umoci", func(t *testing.T) {
		layout := filepath.Join(t.TempDir(), "layout")
		matrix.ByUmoci(t, layout)
		compareInContainer(t, bin, "oci:"+layout, matrix.Unpack(t, layout))
	})
	t.Run("buildah", func(t *testing.T) {
		if _, err := exec.LookPath("buildah"); err != nil {
			t.Skip("buildah is not installed")
		}
		layout := filepath.Join(t.TempDir(), "layout")
		compareInContainer(t, bin, "oci:"+layout, matrix.ByBuildah(t, layout))
	})
}

// treeTimeout is long: an emulated guest looks at 400 files in a second.
const treeTimeout = 4 * runTimeout

// compareInContainer has showtree, which is in bin, tell what a container of an
// image sees, and compares that with the tree at root.
func compareInContainer(t *testing.T, bin, ref, root string) {
	t.Helper()
	// What a container has of Podman rather than of its image.
	podman := []string{"dev", "etc", "mnt", "proc", "run", "sys"}
	want, err := tree.Read(root, podman...)
	if err != nil {
		t.Fatal(err)
	}
	r := fcvmWithin(t, treeTimeout, nil, append([]string{
		"run", "--vmm", env.driver, "--network", "none", "--mount", "type=bind,map-mode=block,source=" + bin + ",target=/mnt/bin",
		ref, "/mnt/bin/showtree", "/",
	}, podman...)...)
	var got map[string]tree.Entry
	if err := gob.NewDecoder(bytes.NewReader([]byte(r.stdout))).Decode(&got); r.code != 0 || err != nil {
		t.Fatalf("exit code %d, %v; stderr:\n%s", r.code, err, r.stderr)
	}
	// The root's own entry is the overlay's.
	for _, d := range tree.Differences(got, want, []string{"."}) {
		t.Error(d)
	}
	t.Logf("%d entries", len(got))
}
