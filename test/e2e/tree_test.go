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

// TestTreeInTheContainer compares what a container sees with what umoci unpacks
// of its image.
func TestTreeInTheContainer(t *testing.T) {
	if _, err := exec.LookPath("umoci"); err != nil || os.Getuid() != 0 {
		t.Skip("umoci is not installed, or not root is here to unpack with it")
	}
	bin := filepath.Dir(buildProgram(t, "./test/tree/showtree"))
	for name, layers := range map[string][]matrix.Fill{"special": matrix.Special(), "many layers": matrix.ManyLayers(40)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := matrix.WriteLayout(dir+"/layout", layers, compression.GZip); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("umoci", "unpack", "--image", dir+"/layout:x", dir+"/bundle").CombinedOutput(); err != nil {
				t.Fatalf("umoci unpack: %v\n%s", err, out)
			}
			// What a container has of Podman rather than of its image.
			podman := []string{"dev", "etc", "mnt", "proc", "run", "sys"}
			want, err := tree.Read(dir+"/bundle/rootfs", podman...)
			if err != nil {
				t.Fatal(err)
			}
			r := fcvm(t, append([]string{
				"run", "--vmm", env.driver, "--network", "none", "--mount", "type=bind,map-mode=block,source=" + bin + ",target=/mnt/bin",
				"oci:" + dir + "/layout", "/mnt/bin/showtree", "/",
			}, podman...)...)
			var got map[string]tree.Entry
			if err := gob.NewDecoder(bytes.NewReader([]byte(r.stdout))).Decode(&got); r.code != 0 || err != nil {
				t.Fatalf("exit code %d, %v; stderr:\n%s", r.code, err, r.stderr)
			}
			for _, d := range tree.Differences(got, want, []string{"."}) {
				t.Error(d)
			}
			t.Logf("%d entries", len(got))
		})
	}
}
