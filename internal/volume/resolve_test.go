package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/vm"
)

// disk makes a file that looks like a disk with ext4.
func disk(t *testing.T, path string, unclean bool) {
	t.Helper()
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint16(b[1024+0x38:], 0xef53)
	if unclean {
		b[1024+0x60] = 4
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, image, torn := dir+"/file", dir+"/image", dir+"/torn"
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	disk(t, image, false)
	disk(t, torn, true)
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flags Flags
		want  vm.Mount
	}{
		{Flags{Volumes: []string{dir + "/link:/a"}}, vm.Mount{Kind: vm.MountShare, Source: dir, Target: "/a"}},
		{Flags{Maps: []string{dir + ":/a"}, Mode: ModeBlock}, vm.Mount{Kind: vm.MountBlock, Source: dir, Target: "/a", SizeMiB: DefaultSizeMiB}},
		{Flags{Volumes: []string{file + ":/a:ro"}, Mode: ModeBlock}, vm.Mount{Kind: vm.MountShare, Source: file, Target: "/a", File: true, ReadOnly: true}},
		{Flags{Volumes: []string{image + ":/a"}}, vm.Mount{Kind: vm.MountDisk, Source: image, Target: "/a"}},
		{Flags{Volumes: []string{torn + ":/a"}}, vm.Mount{Kind: vm.MountDisk, Source: torn, Target: "/a"}},
		{Flags{Mounts: []string{"type=bind,source=" + image + ",target=/a"}}, vm.Mount{Kind: vm.MountShare, Source: image, Target: "/a", File: true}},
		{Flags{Mounts: []string{"type=bind,map-mode=block,source=" + dir + ",target=/a"}}, vm.Mount{Kind: vm.MountBlock, Source: dir, Target: "/a", SizeMiB: DefaultSizeMiB}},
		{Flags{Volumes: []string{"data:/a"}}, vm.Mount{Kind: vm.MountVolume, Source: "data", Target: "/a", SizeMiB: DefaultSizeMiB}},
	} {
		got, err := c.flags.Resolve()
		if err != nil || len(got) != 1 || cmp.Diff(c.want, got[0]) != "" {
			t.Errorf("%+v: %+v, %v", c.flags, got, err)
		}
	}
	for _, f := range []Flags{
		{Volumes: []string{dir + "/none:/a"}},
		{Volumes: []string{"/dev/null:/a"}},
		{Volumes: []string{torn + ":/a:ro"}},
		{Mounts: []string{"type=disk,source=" + dir + ",target=/a"}},
		{Mounts: []string{"type=disk,source=" + file + ",target=/a"}},
		{Mounts: []string{"type=bind,map-mode=block,source=" + file + ",target=/a"}},
	} {
		if got, err := f.Resolve(); err == nil {
			t.Errorf("%+v: %+v", f, got)
		}
	}
}

func TestStore(t *testing.T) {
	s := NewStore(paths.Layout{Data: t.TempDir()})
	info := Info{Name: "data", SizeMiB: 16, Labels: map[string]string{"a": "b"}}
	if err := s.Create(t.Context(), info); errors.Is(err, rootfs.ErrTool) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), info); !errors.Is(err, ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Name != "data" || list[0].SizeMiB != 16 || list[0].Labels["a"] != "b" {
		t.Errorf("%+v, %v", list, err)
	}
	rw, ro := vm.Mount{Source: "data"}, vm.Mount{Source: "data", ReadOnly: true}
	w, err := s.Take(t.Context(), rw)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []vm.Mount{rw, ro} {
		if _, err := s.Take(t.Context(), m); !errors.Is(err, ErrInUse) {
			t.Errorf("beside a writer, read-only %t: %v", m.ReadOnly, err)
		}
	}
	if err := s.Remove("data"); !errors.Is(err, ErrInUse) || !s.InUse("data") {
		t.Errorf("removed while it is used: %v", err)
	}
	_ = w.Close()
	for range 2 {
		r, err := s.Take(t.Context(), ro)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
	}
	if _, err := s.Take(t.Context(), rw); !errors.Is(err, ErrInUse) {
		t.Errorf("written beside readers: %v", err)
	}
	other, err := s.Take(t.Context(), vm.Mount{Source: "made", SizeMiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	_ = other.Close()
	if err := s.Remove("made"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"made", "../data", "", "."} {
		if err := s.Remove(name); err == nil {
			t.Errorf("removed %q", name)
		}
	}
}

// A volume of which a file is missing is an error, and does not become another.
func TestDamagedVolume(t *testing.T) {
	for _, name := range []string{"lock", "disk.ext4"} {
		s := NewStore(paths.Layout{Data: t.TempDir()})
		if err := s.Create(t.Context(), Info{Name: "data", SizeMiB: 16}); errors.Is(err, rootfs.ErrTool) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(filepath.Dir(s.Path("data")), name)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		for _, readOnly := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := s.Take(ctx, vm.Mount{Source: "data", SizeMiB: 16, ReadOnly: readOnly})
			cancel()
			if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "is damaged") {
				t.Errorf("without its %s, read-only %t: %v", name, readOnly, err)
			}
		}
		if err := s.Remove("data"); err != nil {
			t.Errorf("without its %s: %v", name, err)
		}
	}
}

// To look at a volume disturbs nobody who takes it.
func TestInUseTakesNothing(t *testing.T) {
	s := NewStore(paths.Layout{Data: t.TempDir()})
	if err := s.Create(t.Context(), Info{Name: "data", SizeMiB: 16}); errors.Is(err, rootfs.ErrTool) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	var looking sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		looking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.InUse("data")
				}
			}
		})
	}
	for i := range 2000 {
		m := vm.Mount{Source: "data", ReadOnly: i%2 == 1}
		h, err := s.Take(t.Context(), m)
		if err != nil {
			t.Errorf("while others look, read-only %t: %v", m.ReadOnly, err)
			break
		}
		if !s.InUse("data") {
			t.Errorf("it is held, read-only %t, and not in use", m.ReadOnly)
		}
		_ = h.Close()
	}
	close(stop)
	looking.Wait()
	if s.InUse("data") || s.InUse("none") {
		t.Error("in use when nobody holds it")
	}
}
