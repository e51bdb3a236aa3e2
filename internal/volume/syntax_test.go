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
		"/a:/b:ro,z":  {Mount: vm.Mount{Source: "/a", Target: "/b", ReadOnly: true}, path: true},
		"/a:/b:Z,rw,cached,delegated,consistent,exec":                   {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true},
		"/a:/b:rbind,rslave,bind,private,rprivate,shared,rshared,slave": {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true},
		"data:/b:nocopy":  {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b", NoCopy: true}},
		"data:/b:copy,ro": {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b", ReadOnly: true}},
		"/b":              {Mount: vm.Mount{Kind: vm.MountAnonymous, Target: "/b"}},
	} {
		got, err := parseVolume(arg)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(request{})); err != nil || d != "" {
			t.Errorf("%q: %v\n%s", arg, err, d)
		}
	}
	for _, arg := range []string{"", "a", ":/b", "/a:", "/a:b", "/a:/", "/a:/b:ro:x", "/a:/b:", "/a:/b:ro,", "/a:/b:ro,rw", "/a:/b:nocopy", "/a:/b:x", "/a:/b:U", "-x:/b", "a b:/b", "/a:/b/..", "/a\x00:/b"} {
		if r, err := parseVolume(arg); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q: %+v, %v", arg, r, err)
		}
	}
}

func TestParseMount(t *testing.T) {
	for arg, want := range map[string]request{
		"type=tmpfs,target=/b,noexec,nosuid,dev,rprivate,tmpfs-size=1m":                                   {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", Options: "noexec,nosuid,dev,size=1m"}},
		"type=bind,source=/a,target=/b":                                                                   {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true, bind: true},
		"type=bind,src=a,dst=/b,readonly":                                                                 {Mount: vm.Mount{Source: "a", Target: "/b", ReadOnly: true}, path: true, bind: true},
		`type=bind,"src=/with,comma:colon",destination=/b`:                                                {Mount: vm.Mount{Source: "/with,comma:colon", Target: "/b"}, path: true, bind: true},
		"type=bind,src=/a,dst=/b,map-mode=block,ro=false":                                                 {Mount: vm.Mount{Kind: vm.MountBlock, Source: "/a", Target: "/b"}, path: true, bind: true},
		"type=disk,src=/dev/vdb,dst=/b,ro=1":                                                              {Mount: vm.Mount{Kind: vm.MountDisk, Source: "/dev/vdb", Target: "/b", ReadOnly: true}, path: true},
		"source=data,target=/b,size=1g":                                                                   {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b", SizeMiB: 1024}},
		"type=bind,src=/a,dst=/b,rw,z,rprivate,rbind":                                                     {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true, bind: true},
		"type=bind,src=/a,dst=/b,readonly=true,consistency=cached,bind-propagation=rslave,relabel=shared": {Mount: vm.Mount{Source: "/a", Target: "/b", ReadOnly: true}, path: true, bind: true},
		"type=bind,src=/a,dst=/b,readonly=false,rw=true":                                                  {Mount: vm.Mount{Source: "/a", Target: "/b"}, path: true, bind: true},
		"type=bind,src=/a,dst=/b,rw=false":                                                                {Mount: vm.Mount{Source: "/a", Target: "/b", ReadOnly: true}, path: true, bind: true},
		"type=tmpfs,target=/b,rw=0":                                                                       {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", ReadOnly: true, Options: "ro"}},
		"source=data,target=/b,volume-nocopy":                                                             {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b", NoCopy: true}},
		"source=data,target=/b,nocopy=false":                                                              {Mount: vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/b"}},
		"type=tmpfs,target=/b,exec":                                                                       {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", Options: "exec"}},
		"target=/b,volume-nocopy=true":                                                                    {Mount: vm.Mount{Kind: vm.MountAnonymous, Target: "/b", NoCopy: true}},
		"type=volume,target=/b":                                                                           {Mount: vm.Mount{Kind: vm.MountAnonymous, Target: "/b"}},
		"type=tmpfs,target=/b,readonly,tmpfs-size=10m":                                                    {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", ReadOnly: true, Options: "ro,size=10m"}},
		"type=tmpfs,target=/b,tmpfs-size=10m,tmpfs-mode=700":                                              {Mount: vm.Mount{Kind: vm.MountTmpfs, Target: "/b", Options: "size=10m,mode=700"}},
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
		"type=tmpfs,target=/b,tmpfs-size=1m,size=1m", "type=bind,src=/a,dst=/b,ro,rw", "type=bind,src=/a,dst=/b,ro=false,rw=false", "type=bind,src=/a,dst=/b,nocopy", "type=bind,src=/a,dst=/b,shiny",
		"type=bind,src=/a,dst=/b,bind-propagation=odd", "type=bind,src=/a,dst=/b,consistency", "type=bind,src=/a,dst=/b,relabel=z", "source=data,target=/b,nocopy=maybe",
	} {
		if r, err := parseMount(arg); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q: %+v, %v", arg, r, err)
		}
	}
}

// What cannot be done is refused by its name, not as a mistake.
func TestRefusedOptions(t *testing.T) {
	for _, o := range []string{"U", "chown", "noexec", "nosuid", "nodev", "suid", "dev", "idmap", "O"} {
		for arg, parse := range map[string]func(string) (request, error){
			"/a:/b:ro," + o: parseVolume, "type=bind,source=/a,target=/b," + o: parseMount, "type=disk,source=/a,target=/b," + o: parseMount, "source=a,target=/b," + o + "=true": parseMount,
		} {
			if _, err := parse(arg); !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), "option "+o+" cannot be honoured") {
				t.Errorf("%s: %v", arg, err)
			}
		}
	}
	if _, err := parseMount("type=tmpfs,target=/b,U"); !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), "option U cannot be honoured") {
		t.Errorf("of a tmpfs: %v", err)
	}
	if _, err := parseMount("target=/b,size=1g"); !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), "--scratch-size") {
		t.Errorf("the size of a volume without a name: %v", err)
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
