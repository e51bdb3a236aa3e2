package supervisor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/vm"
)

func TestPlanMounts(t *testing.T) {
	in := &instance{life: &life{}}
	in.Spec.Mounts = []vm.Mount{
		{Kind: vm.MountVolume, Source: "a", Target: "/a"},
		{Kind: vm.MountShare, Source: "/dir", Target: "/b"},
		{Kind: vm.MountVolume, Source: "c", Target: "/c", ReadOnly: true},
		{Kind: vm.MountVolume, Source: "d", Target: "/d", NoCopy: true},
		{Kind: vm.MountAnonymous, Target: "/e"},
		{Kind: vm.MountAnonymous, Target: "/f", NoCopy: true},
		{Kind: vm.MountBlock, Source: "/dir", Target: "/g", ReadOnly: true},
		{Kind: vm.MountDisk, Source: "/disk", Target: "/h"},
	}
	in.image.Config = image.Config{Volumes: []string{"/a", "/i"}}
	want := []agentapi.Mount{
		{Target: "/a", Disk: 3, Own: true, Seed: true},
		{Target: "/b", Share: "1"},
		{Target: "/c", Disk: 4, ReadOnly: true},
		{Target: "/d", Disk: 5, Own: true},
		{Target: "/g", Disk: 6, ReadOnly: true, Own: true},
		{Target: "/h", Disk: 7},
	}
	if diff := cmp.Diff(want, in.planMounts()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/i", "/e", "anonymous5:/f:nocopy"}, in.anonymousVolumes()); diff != "" {
		t.Error(diff)
	}
}
