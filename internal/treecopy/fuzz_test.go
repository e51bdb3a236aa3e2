package treecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzUnpack unpacks whatever comes beside something that is not to be touched,
// where links lead there.
func FuzzUnpack(f *testing.F) {
	var seeds [][]byte
	for _, headers := range [][]tar.Header{
		{reg("a")},
		{dir("a"), reg("a/b"), sym("a/l", "../../outside"), hard("a/h", "a/b")},
		{sym("a", "/"), reg("a/b")},
		{dir("out"), reg("out/secret")},
		{reg("../outside/secret")},
		{hard("a", "out/secret")},
	} {
		seeds = append(seeds, archive(f, headers...))
	}
	sparse := filepath.Join(f.TempDir(), "sparse")
	if err := errors.Join(os.WriteFile(sparse, []byte("data"), 0o600), os.Truncate(sparse, 1<<20)); err != nil {
		f.Fatal(err)
	}
	src, err := Open(Local{}, sparse, PackOptions{Sparse: true, Xattrs: true})
	if err != nil {
		f.Fatal(err)
	}
	var packed bytes.Buffer
	if err := errors.Join(src.Pack(&packed), src.Close()); err != nil {
		f.Fatal(err)
	}
	for _, seed := range append(seeds, packed.Bytes()) {
		f.Add(seed, false, "")
		f.Add(seed, true, "")
		f.Add(seed, false, "a")
	}
	f.Fuzz(func(t *testing.T, data []byte, extract bool, name string) {
		base := t.TempDir()
		outside, inside := base+"/outside", base+"/inside"
		err := errors.Join(
			os.Mkdir(outside, 0o755), os.Mkdir(inside, 0o755), os.WriteFile(outside+"/secret", []byte("kept"), 0o600),
			os.Symlink(outside, inside+"/out"), os.Symlink("../outside/secret", inside+"/a"),
		)
		if err != nil {
			t.Fatal(err)
		}
		_ = Unpack(Local{}, bytes.NewReader(data), inside, UnpackOptions{Extract: extract, Name: name, Xattrs: true})
		b, err := os.ReadFile(outside + "/secret")
		fi, statErr := os.Stat(outside + "/secret")
		entries, dirErr := os.ReadDir(outside)
		beside, baseErr := os.ReadDir(base)
		if err = errors.Join(err, statErr, dirErr, baseErr); err != nil || string(b) != "kept" || fi.Mode() != 0o600 || len(entries) != 1 || len(beside) != 2 {
			t.Fatalf("outside: %q, %v, %v, %v; %v", b, fi, entries, beside, err)
		}
	})
}
