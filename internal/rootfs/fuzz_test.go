package rootfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// FuzzBuildImage makes disks of layers that anybody may have made: it takes no
// more than the limits, says what is wrong in one of the package's errors, and
// what it makes is a file system. Where the second layer begins is part of the
// input.
func FuzzBuildImage(f *testing.F) {
	for _, seed := range [][]byte{
		archive(f, dir("d", 0o755), file("d/f", "content", 0o644), symlink("l", "d"), hardlink("h", "d/f")),
		archive(f, file("l/.wh.f", "", 0o644), file("d/.wh..wh..opq", "", 0o644), file("d/g", "x", 0o600)),
		gzipped(f, archive(f, withXattr(file("x", "1", 0o755), "user.a", "b"))),
		zstded(f, archive(f, owned(dir("o", 0o700), 123456, 7))),
		archive(f, symlink("a", "b"), symlink("b", "a"), file("a/f", "", 0o644)),
		[]byte("no archive"),
	} {
		f.Add(seed, seed)
	}
	limits := Limits{Bytes: 1 << 20, Entries: 1000, Name: 300, Strings: 1 << 20}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = disk.Close() }()
		stats, err := BuildImage(context.Background(), []Layer{layerOf(lower, ""), layerOf(upper, "")}, disk, Options{Limits: limits, Prefix: "rootfs"})
		switch {
		case err == nil:
			checkFuzzed(t, disk, stats, limits)
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsafe) && !errors.Is(err, ErrTooLarge):
			t.Errorf("an error that says nothing of the archive: %v", err)
		}
	})
}

// checkFuzzed looks at what was made of layers that were taken.
func checkFuzzed(t *testing.T, disk *os.File, stats Stats, limits Limits) {
	t.Helper()
	if stats.Bytes > limits.Bytes || stats.Entries > limits.Entries {
		t.Errorf("over the limits: %+v", stats)
	}
	st, err := disk.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys, _ := st.Sys().(*syscall.Stat_t)
	if got, limit := sys.Blocks*512, diskSize(limits.Bytes, limits.Entries); got > limit {
		t.Errorf("the disk takes %d bytes, the limit is %d", got, limit)
	}
	var magic [2]byte
	if _, err := disk.ReadAt(magic[:], superblockAt+sbMagic); err != nil || !bytes.Equal(magic[:], []byte{0x53, 0xef}) {
		t.Errorf("no ext4 file system: % x, %v", magic, err)
	}
	if _, err := disk.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
}
