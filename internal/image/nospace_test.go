package image

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk returns a directory on a file system of so many MiB, and what gives
// it room.
func smallDisk(t *testing.T, mib string) (dir string, grow func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a file system of its own needs root")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+mib+"m"); err != nil {
		t.Skipf("this machine mounts no file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func() {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=256m"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoSpace fills the disk in mid-pull, in mid-conversion and in mid-load: the
// error says so, images that were there still work, and with room all goes on.
func TestNoSpace(t *testing.T) {
	noCredentials(t)
	r := startRegistry(t)
	small := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	big := newImage(t, runtime.GOARCH, map[string]string{"f": random(t, 12<<20)})
	smallRef, bigRef := r.push(t, "small:v1", small), r.push(t, "big:v1", big)
	archive := writeDocker(t, "big:v1", big)
	digest, _ := onlyLayer(t, big)
	var asked atomic.Int64
	r.intercept = func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, digest) {
			asked.Add(1)
		}
		return false
	}
	pull := func(s *Store) error {
		img, err := s.Ensure(context.Background(), bigRef, EnsureOptions{})
		img.Release()
		return err
	}
	for _, tt := range []struct {
		name   string
		mib    string
		get    func(*Store) error
		needed int64 // requests for the layer, with room
	}{
		{"in mid-pull", "8", pull, 1},
		{"in mid-conversion", "20", pull, 0},
		{"in mid-load", "8", func(s *Store) error {
			_, err := s.Load(context.Background(), open(t, archive), LoadOptions{})
			return err
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, grow := smallDisk(t, tt.mib)
			s, err := Open(filepath.Join(dir, "images"))
			if err != nil {
				t.Fatal(err)
			}
			img, err := s.Ensure(context.Background(), smallRef, EnsureOptions{})
			if err != nil {
				t.Fatal(err)
			}
			img.Release()
			err = tt.get(s)
			if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("got %v, want %v that names %s", err, ErrNoSpace, dir)
			}
			checkClean(t, s, 1)
			if list, err := os.ReadDir(s.join("partial")); err != nil || len(list) != 0 {
				t.Errorf("left in partial: %v, %v", list, err)
			}
			e, err := s.Find(smallRef, "")
			if err != nil {
				t.Fatal(err)
			}
			if v, err := s.Verify(context.Background(), e, VerifyOptions{CheckOnly: true}); err != nil || len(v.Damage) != 0 {
				t.Errorf("the image that was there: %+v, %v", v, err)
			}
			grow()
			asked.Store(0)
			if err := tt.get(s); err != nil {
				t.Errorf("with room: %v", err)
			}
			if n := asked.Load(); n != tt.needed {
				t.Errorf("the layer was asked for %d times with room, want %d", n, tt.needed)
			}
			checkClean(t, s, 2)
		})
	}
}
