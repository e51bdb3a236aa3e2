package treecopy

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestXattrsAreKept: of files, with holes or without, and of directories, and of
// the one that is there already.
func TestXattrsAreKept(t *testing.T) {
	src := tree(t, "d/", "d/a", "d/sparse", "d/sub/", "d/sub/ro")
	if err := errors.Join(os.Truncate(src+"/d/sparse", 1<<20), os.Chmod(src+"/d/sub/ro", 0o444)); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{
		".": {"user.top": "1"}, "a": {"user.bytes": "\x00=\n", "user.empty": ""}, "sparse": {"user.a": "1", "user.b": ""}, "sub": {"user.sub": "2"}, "sub/ro": {},
	}
	if os.Geteuid() == 0 {
		// cap_net_raw+ep, as setcap writes it (linux/capability.h, version 2).
		want["sub/ro"]["security.capability"] = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		want["."]["trusted.top"] = "3"
	}
	for name, attrs := range want {
		for k, v := range attrs {
			if err := unix.Setxattr(filepath.Join(src, "d", name), k, []byte(v), 0); errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
				t.Skipf("no %s here: %v", k, err)
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, keep := range []bool{true, false} {
		dst := t.TempDir()
		s, err := Open(Local{}, src+"/d/.", PackOptions{Sparse: true, Xattrs: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		var b bytes.Buffer
		if err := s.Pack(&b); err != nil {
			t.Fatal(err)
		}
		o := UnpackOptions{Archive: os.Geteuid() == 0, Xattrs: keep}
		if err := Unpack(Local{}, &b, dst, o); err != nil {
			t.Fatal(err)
		}
		for name, attrs := range want {
			if name == "." && !o.Archive {
				continue // it is there already, and stays as it is
			}
			for k, v := range attrs {
				buf := make([]byte, 100)
				n, err := unix.Getxattr(filepath.Join(dst, name), k, buf)
				if got := string(buf[:max(n, 0)]); keep && (err != nil || got != v) {
					t.Errorf("%s: %s is %q (%v), want %q", name, k, got, err, v)
				} else if !keep && !errors.Is(err, unix.ENODATA) {
					t.Errorf("%s: %s was not asked for: %q, %v", name, k, got, err)
				}
			}
		}
	}
}
