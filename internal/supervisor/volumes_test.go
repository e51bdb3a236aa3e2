package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
)

// A snapshot knows what was in the disks that its guest only reads, and a clone gets
// no others.
func TestCloneOfASharedDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{Mounts: []vm.Mount{{Kind: vm.MountDisk, Source: path, Target: "/data", ReadOnly: true}}}
	original := &instance{life: &life{Options: Options{Spec: spec}}}
	if err := original.takeVolumes(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := original.shared(agentapi.DiskVolumes)
	if err := original.life.undo.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := snapshot.Manifest{Name: "warm", Disks: []snapshot.Disk{{ID: "volume0", ReadOnly: true, Path: d.path, Contents: d.contents}}}
	for _, written := range []bool{false, true} {
		if written {
			if err := os.WriteFile(path, []byte("after"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l := &life{Options: Options{Spec: spec, Clone: &Clone{Snapshot: &snapshot.Snapshot{Manifest: m}}}}
		err := l.takeVolumes(t.Context())
		if errors.Is(err, snapshot.ErrMismatch) != written || (err != nil) != written || (written && !strings.Contains(err.Error(), path)) {
			t.Errorf("written since: %t: %v", written, err)
		}
		if err := l.undo.run(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
