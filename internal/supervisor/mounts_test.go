package supervisor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/vm"
)

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
			if diff := cmp.Diff(tc.want, (&instance{life: l}).anonymousVolumes()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
