package rootfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// blocks is what a file takes on the disk, bytes.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func needMkfs(t *testing.T) {
	t.Helper()
	if _, err := findMkfs(); err != nil {
		t.Skip("mkfs.ext4 is not installed (package e2fsprogs)")
	}
}

func TestScratch(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	templates := filepath.Join(dir, "templates")
	if err := os.Mkdir(templates, 0o700); err != nil {
		t.Fatal(err)
	}
	abandoned, young := filepath.Join(templates, ".new-1"), filepath.Join(templates, ".new-2")
	for _, p := range []string{abandoned, young} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * templateMaxAge)
	if err := os.Chtimes(abandoned, old, old); err != nil {
		t.Fatal(err)
	}

	const size = 4<<30 - 5000 // rounded up
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() {
			if err := Scratch(t.Context(), templates, size, filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"a", "b", "c"} {
		disk := filepath.Join(dir, name)
		st, err := os.Stat(disk)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() != 4<<30 || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v", name, st.Size(), st.Mode())
		}
		if b := blocks(t, disk); b > 1<<20 {
			t.Errorf("%s takes %d bytes while empty", name, b)
		}
		fsckDisk(t, disk)
	}
	left, err := os.ReadDir(templates)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".new-2 v1-4096M.ext4" {
		t.Errorf("templates: %s", got)
	}
	if features := debugDisk(t, filepath.Join(dir, "a"), "features"); strings.Contains(features, "has_journal") {
		t.Errorf("features: %s", features)
	}
	if err := Scratch(t.Context(), templates, size, filepath.Join(dir, "a")); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing disk: %v", err)
	}
}

func TestScratchRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int64{-1, 0, MinScratch - 1, MaxScratch + 1} {
		if err := Scratch(t.Context(), dir, size, filepath.Join(dir, "x")); err == nil {
			t.Errorf("size %d: no error", size)
		}
	}
	needMkfs(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	templates := filepath.Join(dir, "templates")
	if err := Scratch(ctx, templates, MinScratch, filepath.Join(dir, "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := os.ReadDir(templates); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestScratchOldMkfs(t *testing.T) {
	needMkfs(t)
	mkfs, err := findMkfs()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\ncase \"$*\" in *assume_storage_prezeroed*) echo 'Bad option(s) specified' >&2; exit 1;; esac\nexec " + mkfs + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "mkfs.ext4"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	disk := filepath.Join(dir, "disk")
	if err := Scratch(t.Context(), dir, 64<<20, disk); err != nil {
		t.Fatal(err)
	}
	fsckDisk(t, disk)
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	const size = 200<<20 + 17
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, off := range []int64{0, 50<<20 + 3, size - int64(len(data))} {
		if _, err := f.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, dst string) {
		got, err := os.ReadFile(dst)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("the copy differs")
		}
		if b := blocks(t, dst); b > blocks(t, src)+1<<20 {
			t.Errorf("the copy takes %d bytes, the source %d", b, blocks(t, src))
		}
	}
	t.Run("whichever way", func(t *testing.T) {
		dst := filepath.Join(dir, "dst")
		if err := CopySparse(t.Context(), dst, src); err != nil {
			t.Fatal(err)
		}
		check(t, dst)
		if err := CopySparse(t.Context(), dst, src); !errors.Is(err, os.ErrExist) {
			t.Errorf("over an existing file: %v", err)
		}
		check(t, dst)
	})
	t.Run("extents", func(t *testing.T) {
		in, err := os.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = in.Close() }()
		out, err := os.Create(filepath.Join(dir, "extents"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		if err := copyExtents(t.Context(), out, in); err != nil {
			t.Fatal(err)
		}
		check(t, out.Name())
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		in, err := os.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = in.Close() }()
		out, err := os.Create(filepath.Join(dir, "cancelled"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		if err := copyExtents(ctx, out, in); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		dst := filepath.Join(dir, "refused")
		for _, src := range []string{filepath.Join(dir, "absent"), dir, "/dev/null"} {
			if err := CopySparse(t.Context(), dst, src); err == nil {
				t.Errorf("%s: no error", src)
			}
			if _, err := os.Stat(dst); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: left a copy", src)
			}
		}
	})
}

// Templates may be removed at any time, but for those that are being made.
func TestTemplatesMayBeRemovedAtAnyTime(t *testing.T) {
	needMkfs(t)
	dir := filepath.Join(t.TempDir(), "templates")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "v0-1M.ext4")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := Templates(dir); err != nil || len(list) != 1 || list[0].Path != old || list[0].Current {
		t.Errorf("%+v, %v", list, err)
	}
	var removed atomic.Int32
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			list, err := Templates(dir)
			if err != nil {
				t.Error(err)
			}
			for _, l := range list {
				if os.Remove(l.Path) == nil {
					removed.Add(1)
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	// Until one that was in use has been removed, too: the old one is the first.
	const limit = 1000
	for i := 0; i < limit && (i < 10 || removed.Load() < 2); i++ {
		dst := filepath.Join(dir, "..", "scratch")
		if err := Scratch(t.Context(), dir, MinScratch, dst); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(dst); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	if n := removed.Load(); n < 2 {
		t.Errorf("%d templates were removed meanwhile", n)
	}
}
