package volume

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestParseVolume(t *testing.T) {
	for arg, want := range map[string]request{
		"/a:/b":       {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true},
		"./a:/b/:ro":  {Mount: vm.Mount{Source: "./a", Target: "/b", ReadOnly: true}, path: true},
		"..:/b:rw":    {Mount: vm.Mount{Source: "..", Target: "/b"}, path: true},
		"sub/dir:/b":  {Mount: vm.Mount{Source: "sub/dir", Target: "/b"}, path: true},
		"data:/b//c/": {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b/c"}},
		"/b":          {Mount: vm.Mount{Kind: vm.MountAnonymous, Target: "/b"}},
	} {
		got, err := parseVolume(arg)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(request{})); err != nil || d != "" {
			t.Errorf("%q: %v\n%s", arg, err, d)
		}
	}
	for _, arg := range []string{"", "a", ":/b", "/a:", "/a:b", "/a:/", "/a:/b:z", "/a:/b:ro:x", "-x:/b", "a b:/b", "/a:/b/..", "/a\x00:/b"} {
		if r, err := parseVolume(arg); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q: %+v, %v", arg, r, err)
		}
	}
}

func TestParseMount(t *testing.T) {
	for arg, want := range map[string]request{
		"type=bind,source=/a,target=/b":                      {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true, bind: true},
		"type=bind,src=a,dst=/b,readonly":                    {Mount: vm.Mount{Source: "a", Target: "/b", ReadOnly: true}, path: true, bind: true},
		`type=bind,"src=/with,comma:colon",destination=/b`:   {Mount: vm.Mount{Source: "/with,comma:colon", Target: "/b"}, path: true, bind: true},
		"type=bind,src=/a,dst=/b,map-mode=block,ro=false":    {Mount: vm.Mount{Kind: vm.MountBlock, Source: "/a", Target: "/b"}, path: true, bind: true},
		"type=disk,src=/dev/vdb,dst=/b,ro=1":                 {Mount: vm.Mount{Kind: vm.MountDisk, Source: "/dev/vdb", Target: "/b", ReadOnly: true}, path: true},
		"source=data,target=/b,size=1g":                      {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b", SizeMiB: 1024}},
		"type=volume,target=/b":                              {Mount: vm.Mount{Kind: vm.MountAnonymous, Target: "/b"}},
		"type=tmpfs,target=/b,readonly,tmpfs-size=10m":       {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", ReadOnly: true, Options: "ro,size=10m"}},
		"type=tmpfs,target=/b,tmpfs-size=10m,tmpfs-mode=700": {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", Options: "size=10m,mode=700"}},
	} {
		got, err := parseMount(arg)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(request{})); err != nil || d != "" {
			t.Errorf("%q: %v\n%s", arg, err, d)
		}
	}
	for _, arg := range []string{
		"", "type=bind", "type=bind,target=/b", "type=nfs,source=/a,target=/b", "type=bind,source=/a", "type=bind,source=/a,target=/b,target=/c",
		"type=bind,source=/a,target=/b,propagation=shared", "type=bind,source=/a,target=/b,readonly=maybe", "type=tmpfs,source=x,target=/b",
		"type=tmpfs,target=/b,tmpfs-size=lots", "type=volume,source=a/b,target=/b", "source=data,target=/b,size=1", "source=data,target=/b,size=99999999t", `"`, "type=bind,source=/a,target=/b,readonly,ro",
		"type=tmpfs,target=/b,tmpfs-size=1m,size=1m",
	} {
		if r, err := parseMount(arg); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q: %+v, %v", arg, r, err)
		}
	}
}

// FuzzSyntax: whatever is typed, what is understood can be mounted.
func FuzzSyntax(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "data:/b", "/b", "type=bind,source=/a,target=/b,ro", "type=tmpfs,target=/b,tmpfs-size=1m", `type=disk,"src=/a,b",dst=/c`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		for _, parse := range []func(string) (request, error){parseVolume, parseMount} {
			r, err := parse(arg)
			if err != nil {
				if !errors.Is(err, vm.ErrInvalid) {
					t.Errorf("%q: %v is not about what was typed", arg, err)
				}
				continue
			}
			if vm.CheckTarget(r.Target) != nil || path.Clean(r.Target) != r.Target || strings.ContainsRune(r.Source, 0) {
				t.Errorf("%q: %+v", arg, r)
			}
			if r.Kind == "" && !r.path || r.path && r.Source == "" || r.Kind == vm.MountVolume && CheckName(r.Source) != nil {
				t.Errorf("%q: %+v", arg, r)
			}
			if r.SizeMiB < 0 || r.SizeMiB > MaxSizeMiB {
				t.Errorf("%q: %d MiB", arg, r.SizeMiB)
			}
		}
	})
}
