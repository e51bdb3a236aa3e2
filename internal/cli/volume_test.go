package cli

import (
	"strings"
	"testing"
)

// A volume that is there is as good as one that was just made, unless another
// size was asked for.
func TestVolumeCreateTwice(t *testing.T) {
	h := newHost(t)
	for _, args := range [][]string{{"--size", "32m", "data"}, {"data"}, {"--size", "32m", "data"}, {"-l", "a=b", "data"}} {
		if out := h.ok(append([]string{"volume", "create"}, args...)...); out != "data\n" {
			t.Errorf("%q: %q", args, out)
		}
	}
	h.says("fcvm: create volume data: volume exists: it has 32 MiB, not 1024: .*fcvm volume rm data", "volume", "create", "--size", "1g", "data")
	if out := h.ok("volume", "ls", "--format", "{{.Name}} {{.SizeMiB}}"); strings.TrimSpace(out) != "data 32" {
		t.Errorf("volumes: %q", out)
	}
}
