package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The agent is loaded into the memory of every guest: what only the host
// needs must not be linked into it.
func TestAgentLinksNothingHeavy(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("list the agent's packages: %v", err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{
			"gvisor.dev/", "github.com/containers/", "github.com/spf13/", "github.com/google/go-containerregistry/",
			"github.com/Microsoft/", "github.com/klauspost/", "github.com/google/nftables", "github.com/pkg/sftp", "go.opentelemetry.io/",
			"github.com/fcvm/fcvm/internal/cli", "github.com/fcvm/fcvm/internal/image", "github.com/fcvm/fcvm/internal/rootfs",
			"github.com/fcvm/fcvm/internal/setup", "github.com/fcvm/fcvm/internal/store", "github.com/fcvm/fcvm/internal/supervisor",
		} {
			if strings.HasPrefix(dep, heavy) {
				t.Errorf("the agent links %s", dep)
			}
		}
	}
}
