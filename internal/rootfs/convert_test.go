package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tarStream makes an archive of headers; a regular file's content is its name
// repeated to its size.
func tarStream(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, repeat(h.Name), h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type repeat string

func (r repeat) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], r)
	}
	return n, nil
}

func newDisk(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// fsckDisk fails the test when e2fsck finds more than the padding of the
// inode bitmap, which the writer leaves empty and nobody reads.
func fsckDisk(t *testing.T, path string) {
	t.Helper()
	e2fsck, err := exec.LookPath("/usr/sbin/e2fsck")
	if err != nil {
		t.Skip("e2fsck is not installed (package e2fsprogs)")
	}
	cmd := exec.Command(e2fsck, "-fn", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "Fix? no") && !strings.Contains(line, "Padding at end of inode bitmap") {
			t.Fatalf("e2fsck:\n%s", out)
		}
	}
	if exit != nil && exit.ExitCode()&^4 != 0 {
		t.Fatalf("e2fsck: %v\n%s", exit, out)
	}
}

// debugDisk runs a command of e2fsprogs' debugger on a disk.
func debugDisk(t *testing.T, disk, request string) string {
	t.Helper()
	path, err := exec.LookPath("/usr/sbin/debugfs")
	if err != nil {
		t.Skip("debugfs is not installed (package e2fsprogs)")
	}
	out, err := exec.Command(path, "-R", request, disk).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", request, err)
	}
	return string(out)
}

func TestConvertTar(t *testing.T) {
	archive := tarStream(
		t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib", Mode: 0o777},
		tar.Header{Name: "./usr/big", Typeflag: tar.TypeReg, Size: 3 << 20, Mode: 0o4755, Uid: 7, Gid: 70000},
		tar.Header{Name: "./usr/link", Typeflag: tar.TypeLink, Linkname: "./usr/big"},
		tar.Header{Name: "./etc/replaced", Typeflag: tar.TypeReg, Size: 10, Mode: 0o600},
	)
	dst := newDisk(t)
	var seen int64
	st, err := ConvertTar(t.Context(), bytes.NewReader(archive), []Entry{
		{Name: "etc/replaced", Mode: 0o644, Content: []byte("extra\n")},
		{Name: "lib/systemd/unit", Mode: os.ModeSymlink, Target: "/dev/null"},
		{Name: "var/sticky", Mode: os.ModeDir | os.ModeSticky | 0o777},
	}, dst, Options{Progress: func(n int64) { seen += n }})
	if err != nil {
		t.Fatal(err)
	}
	if st.Entries < 10 || seen != int64(len(archive)) {
		t.Errorf("%d entries, progress of %d for %d bytes", st.Entries, seen, len(archive))
	}
	fsckDisk(t, dst.Name())
	for request, want := range map[string]string{
		"cat etc/replaced":          "extra\n",
		"stat etc/replaced":         "Mode:  0644",
		"stat usr/lib/systemd/unit": `Fast link dest: "/dev/null"`, // through the link "lib"
		"stat var/sticky":           "Mode:  01777",
		"stat usr/big":              "Mode:  04755",
		"stat usr/link":             "Links: 2",
		"stat etc":                  "Type: directory",
		"stat lib":                  `Fast link dest: "usr/lib"`,
		"stat /":                    "Mode:  0755",
	} {
		if got := debugDisk(t, dst.Name(), request); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in\n%s", request, want, got)
		}
	}
	owner := strings.Join(strings.Fields(debugDisk(t, dst.Name(), "stat usr/big")), " ")
	if !strings.Contains(owner, "User: 7 Group: 70000") {
		t.Errorf("owner of usr/big: %s", owner)
	}
	left, err := os.ReadDir(filepath.Dir(dst.Name()))
	if err != nil || len(left) != 1 {
		t.Errorf("left beside the disk: %v, %v", left, err)
	}
}

func TestConvertTarRefuses(t *testing.T) {
	good := tarStream(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 4096, Mode: 0o644})
	for name, tc := range map[string]struct {
		archive []byte
		extra   []Entry
		limits  Limits
		want    error
	}{
		"goes up":     {archive: tarStream(t, tar.Header{Name: "../a", Typeflag: tar.TypeReg}), want: ErrUnsafe},
		"truncated":   {archive: good[:1000], want: ErrCorrupt},
		"no archive":  {archive: bytes.Repeat([]byte("x"), 2048), want: ErrCorrupt},
		"bomb":        {archive: good, limits: Limits{Bytes: 4095}, want: ErrTooLarge},
		"extra up":    {archive: good, extra: []Entry{{Name: "../x"}}, want: ErrUnsafe},
		"below file":  {archive: good, extra: []Entry{{Name: "a/b"}}, want: ErrCorrupt},
		"extra bytes": {archive: good, extra: []Entry{{Name: "b", Content: []byte("x")}}, limits: Limits{Bytes: 4096}, want: ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			dst := newDisk(t)
			_, err := ConvertTar(t.Context(), bytes.NewReader(tc.archive), tc.extra, dst, Options{Limits: tc.limits})
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if left, err := os.ReadDir(filepath.Dir(dst.Name())); err != nil || len(left) != 1 {
				t.Errorf("left beside the disk: %v, %v", left, err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ConvertTar(ctx, bytes.NewReader(good), nil, newDisk(t), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := EntriesLayer("x", []Entry{{Name: "dev", Mode: os.ModeDevice}}); err == nil {
		t.Error("a device passes as an entry")
	}
}
