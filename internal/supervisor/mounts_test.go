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
	if diff := cmp.Diff([]agentapi.Volume{{Target: "/i"}, {Target: "/e"}, {Target: "/f", NoCopy: true}}, in.anonymousVolumes()); diff != "" {
		t.Error(diff)
	}
}

func TestAnonymousVolumes(t *testing.T) {
	for name, tc := range map[string]struct {
		volumes []string // the image's
		mounts  []vm.Mount
		tmpfs   []string
		want    []string
	}{
		"none":                       {},
		"the image's":                {volumes: []string{"/a", "/b"}, want: []string{"/a", "/b"}},
		"one that is mounted at":     {volumes: []string{"/a", "/b"}, mounts: []vm.Mount{{Kind: vm.MountShare, Target: "/a"}}, want: []string{"/b"}},
		"written in another way":     {volumes: []string{"/a/", "/b/../c"}, mounts: []vm.Mount{{Kind: vm.MountVolume, Target: "/a"}, {Kind: vm.MountDisk, Target: "/c/"}}},
		"twice":                      {volumes: []string{"/a", "/a/", "//a"}, want: []string{"/a"}},
		"a tmpfs":                    {volumes: []string{"/a", "/b"}, tmpfs: []string{"/a", "/b/:size=1m"}},
		"a mount that is a tmpfs":    {volumes: []string{"/a"}, mounts: []vm.Mount{{Kind: vm.MountTmpfs, Target: "/a", Options: "size=1m"}}},
		"asked for, and the image's": {volumes: []string{"/a/", "/b"}, mounts: []vm.Mount{{Kind: vm.MountAnonymous, Target: "/a"}}, want: []string{"/b", "/a"}},
		"within a mount":             {volumes: []string{"/a/b"}, mounts: []vm.Mount{{Kind: vm.MountShare, Target: "/a"}}, want: []string{"/a/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := &life{image: image.Image{Config: image.Config{Volumes: tc.volumes}}}
			l.Spec.Mounts, l.Spec.Container.Tmpfs = tc.mounts, tc.tmpfs
			var got []string
			for _, v := range (&instance{life: l}).anonymousVolumes() {
				got = append(got, v.Target)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
