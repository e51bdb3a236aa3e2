package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mount lets the kernel read a disk, which only root can ask for.
func mount(t *testing.T, disk string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a disk needs root")
	}
	at := t.TempDir()
	if out, err := exec.Command("mount", "-t", "ext4", "-o", "ro,loop", disk, at).CombinedOutput(); err != nil {
		t.Skipf("this machine does not mount disks: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

// TestBuildImageTimes: an image's times are what the kernel reads, from 1901 to
// 2310.
func TestBuildImageTimes(t *testing.T) {
	at := func(year int, month time.Month, day, ns int) time.Time {
		return time.Date(year, month, day, 3, 14, 7, ns, time.UTC)
	}
	tests := map[string]struct{ has, want time.Time }{
		"now":          {testTime, testTime},
		"a second ago": {time.Unix(-1, 500), time.Unix(-1, 500)},
		"1969":         {at(1969, 7, 20, 123), at(1969, 7, 20, 123)},
		"1901":         {time.Unix(math.MinInt32, 7), time.Unix(math.MinInt32, 7)},
		"1800":         {at(1800, 1, 1, 5), time.Unix(math.MinInt32, 0)},
		"2038":         {at(2038, 1, 19, 0), at(2038, 1, 19, 0)},
		"2038 over":    {time.Unix(1<<31, 9), time.Unix(1<<31, 9)},
		"2100":         {at(2100, 2, 3, 999_999_999), at(2100, 2, 3, 999_999_999)},
		"2106 over":    {time.Unix(1<<32, 0), time.Unix(1<<32, 0)},
		"2200":         {at(2200, 1, 1, 1), at(2200, 1, 1, 1)},
		"2310":         {time.Unix(10737418239, 3), time.Unix(10737418239, 3)},
		"2311":         {at(2311, 1, 1, 8), time.Unix(10737418239, 0)},
	}
	var entries []entry
	for name, tt := range tests {
		e := file(name, "x", 0o644)
		if name == "2100" {
			e = dir(name, 0o755)
		}
		e.ModTime = tt.has
		entries = append(entries, e)
	}
	disk := build(t, Options{}, layer(t, entries...))
	for name, tt := range tests {
		// The seconds, then two bits for each 2^32 of them and the fraction.
		out := debugfsAll(t, disk, []string{"stat \"/" + name + "\""})[0]
		m := regexp.MustCompile(`mtime: 0x(\w+):(\w+) --`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("no time in %s", out)
		}
		low, err := strconv.ParseUint(m[1], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		extra, err := strconv.ParseUint(m[2], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		got := time.Unix(int64(int32(low))+int64(extra&3)<<32, int64(extra>>2))
		if !got.Equal(tt.want) {
			t.Errorf("%s: got %s, want %s", name, got.UTC(), tt.want.UTC())
		}
	}
	mounted := mount(t, disk)
	for name, tt := range tests {
		st, err := os.Stat(filepath.Join(mounted, name))
		if err != nil {
			t.Fatal(err)
		}
		if !st.ModTime().Equal(tt.want) {
			t.Errorf("%s: the kernel reads %s, want %s", name, st.ModTime().UTC(), tt.want.UTC())
		}
	}
}

// acl is a POSIX ACL as getxattr(2) has it: u::rw-, u:1000:rw-, g::r--, m::rw-, o::r--.
func acl() string {
	b := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 6, 1000}, {4, 4, 1<<32 - 1}, {0x10, 6, 1<<32 - 1}, {0x20, 4, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

func TestBuildImageXattrs(t *testing.T) {
	// cap_net_raw+ep, as setcap writes it (linux/capability.h, version 2).
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	want := map[string]map[string]string{
		"ping": {"security.capability": capability},
		"acl":  {"system.posix_acl_access": acl()},
		"dir":  {"user.on.dir": "yes", "system.posix_acl_default": acl()},
		"many": {
			// More than fit into the inode, of several name spaces and
			// lengths: a block of them must be in the kernel's order.
			"security.capability": capability, "security.selinux": "system_u:object_r:bin_t:s0\x00",
			"user.z": "1", "user.mime_type": "text/plain", "user.a.long.name.of.an.attribute": string(bytes.Repeat([]byte("v"), 500)),
			"trusted.short": "t", "security.ima": string(bytes.Repeat([]byte{3}, 100)), "user.b": string(bytes.Repeat([]byte("w"), 1000)),
		},
	}
	entries := []entry{
		withXattr(withXattr(file("dropped", "x", 0o644), "trusted.overlay.redirect", "/etc"), "com.apple.quarantine", "x"),
	}
	for name, attrs := range want {
		e := file(name, "x", 0o644)
		if name == "dir" {
			e = dir(name, 0o755)
		}
		for k, v := range attrs {
			e = withXattr(e, k, v)
		}
		entries = append(entries, e)
	}
	at := mount(t, build(t, Options{}, layer(t, entries...)))
	for name, attrs := range want {
		for k, v := range attrs {
			buf := make([]byte, 4096)
			n, err := unix.Lgetxattr(filepath.Join(at, name), k, buf)
			if err != nil || string(buf[:n]) != v {
				t.Errorf("%s: %s = %q (%v), want %q", name, k, buf[:max(n, 0)], err, v)
			}
		}
	}
	if n, err := unix.Llistxattr(filepath.Join(at, "dropped"), nil); err != nil || n != 0 {
		t.Errorf("dropped: %d bytes of attribute names (%v), want none", n, err)
	}
	if _, err := os.ReadFile(filepath.Join(at, "acl")); err != nil {
		t.Error(err)
	}
}

// sparseTar writes an archive of one sparse file in GNU's old format: data
// at both ends of a hole.
func sparseTar(t *testing.T, size int64) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, size - 4} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", dir, "--sparse", "--format=gnu", "-c", "sparse").Output()
	if err != nil {
		t.Skipf("tar makes no sparse archive: %v", err)
	}
	return out
}

func TestBuildImageSparse(t *testing.T) {
	const size = 4<<30 + 12345
	b := sparseTar(t, size)
	if len(b) > 1<<20 {
		t.Skip("tar stored the hole")
	}
	disk := build(t, Options{}, layerOf(b, diffID(b)))
	st, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 8<<20 {
		t.Errorf("the disk takes %d MiB of the host's", used>>20)
	}
	at := mount(t, disk)
	f, err := os.Open(filepath.Join(at, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Fatalf("size %d (%v), want %d", st.Size(), err, int64(size))
	}
	for _, off := range []int64{0, 1 << 30, size - 4} {
		buf := make([]byte, 4)
		if _, err := f.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		want := "data"
		if off == 1<<30 {
			want = "\x00\x00\x00\x00"
		}
		if string(buf) != want {
			t.Errorf("at %d: %q, want %q", off, buf, want)
		}
	}
}

// TestBuildImageLarge: a file of data in several extents arrives whole.
func TestBuildImageLarge(t *testing.T) {
	const size = 700 << 20 // over 4 extents of 128 MiB
	r := func() (io.ReadCloser, error) {
		pr, pw := io.Pipe()
		go func() {
			w := tar.NewWriter(pw)
			err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Size: size, Mode: 0o644})
			if err == nil {
				_, err = io.CopyN(w, &pattern{}, size)
			}
			if err == nil {
				err = w.Close()
			}
			_ = pw.CloseWithError(err)
		}()
		return pr, nil
	}
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := BuildImage(context.Background(), []Layer{{Name: "large", Open: r}}, f, Options{}); err != nil {
		t.Fatal(err)
	}
	fsck(t, disk)
	at := mount(t, disk)
	got, err := os.Open(filepath.Join(at, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Close() }()
	sum, want := sha256.New(), sha256.New()
	if _, err := io.Copy(sum, got); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(want, &pattern{}, size); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Error("the file's content changed")
	}
}

// pattern is an endless stream of zeros with a number at each MiB: enough to
// see an extent that is in the wrong place, and quick to write.
type pattern struct{ at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	b = b[:min(int64(len(b)), mib-p.at%mib)]
	clear(b)
	if p.at%mib == 0 && len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, uint64(p.at/mib)+1)
	}
	p.at += int64(len(b))
	return len(b), nil
}
