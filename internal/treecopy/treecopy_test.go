package treecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tree writes files into a new directory: "name/" is a directory, "name -> x"
// a link, "name = x" a hard link, anything else a file that holds the last part
// of its name.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		var err error
		if name, target, ok := strings.Cut(n, " -> "); ok {
			err = os.Symlink(target, filepath.Join(dir, name))
		} else if name, target, ok := strings.Cut(n, " = "); ok {
			err = os.Link(filepath.Join(dir, target), filepath.Join(dir, name))
		} else if strings.HasSuffix(n, "/") {
			err = os.Mkdir(filepath.Join(dir, n), 0o755)
		} else {
			err = os.WriteFile(filepath.Join(dir, n), []byte(filepath.Base(n)), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// list is all below a directory, in the notation of tree.
func list(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case d.IsDir():
			name += "/"
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			name += " -> " + target
		case d.Type().IsRegular():
			b, _ := os.ReadFile(path)
			if string(b) != filepath.Base(name) {
				name += fmt.Sprintf("(%s)", b)
			}
		}
		all = append(all, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func copyTree(src, dst string, o UnpackOptions) error {
	s, err := Open(Local{}, src, PackOptions{Sparse: true})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	var b bytes.Buffer
	if err := s.Pack(&b); err != nil {
		return err
	}
	o.Name = Name(src)
	return Unpack(Local{}, &b, dst, o)
}

func TestWhatGoesWhere(t *testing.T) {
	for _, tc := range []struct {
		src, dst string
		want     string // of the destination; "!": an error that says so
	}{
		{"file", "new", "dir/ dir/old link -> dir new(file) old"},
		{"file", "new/", "!no directory"},
		{"file", "old", "dir/ dir/old link -> dir old(file)"},
		{"file", "old/", "!no directory"},
		{"file", "dir", "dir/ dir/file dir/old link -> dir old"},
		{"file", "dir/", "dir/ dir/file dir/old link -> dir old"},
		{"file", "link", "dir/ dir/file dir/old link -> dir old"}, // a link is followed
		{"file", "none/new", "!no such file"},
		{"file/", "new", "!not a directory"},
		{"none", "new", "!no such file"},
		{"link", "new", "dir/ dir/old link -> dir new -> file old"},
		{"dir", "new", "dir/ dir/old link -> dir new/ new/link -> /etc new/sub/ new/sub/x old"},
		{"dir", "new/", "dir/ dir/old link -> dir new/ new/link -> /etc new/sub/ new/sub/x old"},
		{"dir", "dir", "dir/ dir/dir/ dir/dir/link -> /etc dir/dir/sub/ dir/dir/sub/x dir/old link -> dir old"},
		{"dir/.", "dir", "dir/ dir/link -> /etc dir/old dir/sub/ dir/sub/x link -> dir old"},
		{"dir/.", "new", "dir/ dir/old link -> dir new/ new/link -> /etc new/sub/ new/sub/x old"},
		{"dir", ".", "dir/ dir/link -> /etc dir/old dir/sub/ dir/sub/x link -> dir old"}, // merged
		{"dir", "old", "!is a directory"},
		{"dir/.", "old", "!is a directory"},
		{"dir/sub/x/.", "new", "!not a directory"},
	} {
		t.Run(tc.src+" to "+tc.dst, func(t *testing.T) {
			src := tree(t, "file", "link -> file", "dir/", "dir/sub/", "dir/sub/x", "dir/link -> /etc")
			dst := tree(t, "old", "dir/", "dir/old", "link -> dir")
			err := copyTree(src+"/"+tc.src, dst+"/"+tc.dst, UnpackOptions{})
			if want, ok := strings.CutPrefix(tc.want, "!"); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want an error with %q", err, want)
				}
				if got := list(t, dst); got != "dir/ dir/old link -> dir old" {
					t.Errorf("and it has changed: %s", got)
				}
				return
			}
			got := list(t, dst)
			if err != nil || got != tc.want {
				t.Errorf("%v\ngot  %s\nwant %s", err, got, tc.want)
			}
		})
	}
}

// plainNames leaves contents out.
func plainNames(s string) string {
	var b strings.Builder
	depth := 0
	for _, r := range s {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		default:
			if depth == 0 {
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}

func TestModesTimesAndLinksAreKept(t *testing.T) {
	src := tree(t, "d/", "d/a", "d/b = d/a", "d/ro/", "d/ro/x", "d/suid")
	when := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	for name, mode := range map[string]fs.FileMode{"d/a": 0o640, "d/ro": 0o555, "d/ro/x": 0o400, "d/suid": 0o755 | fs.ModeSetuid, "d": 0o710} {
		if err := errors.Join(os.Chmod(filepath.Join(src, name), mode), os.Chtimes(filepath.Join(src, name), when, when)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(src, "d/ro"), 0o755) })
	dst := t.TempDir()
	if err := copyTree(src+"/d", dst, UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dst, "d/ro"), 0o755) })
	for name, mode := range map[string]fs.FileMode{"d/a": 0o640, "d/ro": 0o555, "d/ro/x": 0o400, "d/suid": 0o755, "d": 0o710} {
		fi, err := os.Stat(filepath.Join(dst, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode()&^fs.ModeDir != mode || !fi.ModTime().Equal(when) {
			t.Errorf("%s: %v, %s", name, fi.Mode(), fi.ModTime())
		}
	}
	a, _ := os.Stat(filepath.Join(dst, "d/a"))
	b, _ := os.Stat(filepath.Join(dst, "d/b"))
	if !os.SameFile(a, b) {
		t.Error("a hard link has become a file")
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := copyTree(src+"/d", filepath.Join(dst, "again"), UnpackOptions{Archive: true}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dst, "again/suid")); err != nil || fi.Mode()&fs.ModeSetuid == 0 {
		t.Errorf("with owners: %v, %v", fi.Mode(), err)
	}
}

func TestSparseFiles(t *testing.T) {
	const size = 1 << 29
	for name, extents := range map[string][]int64{
		"a hole only": {}, "data at the start": {0}, "data at the end": {size - 4}, "here and there": {8192, 1 << 28, size - 100000},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
			f, err := os.Create(src)
			if err == nil {
				err = f.Truncate(size)
			}
			for _, off := range extents {
				if err == nil {
					_, err = f.WriteAt([]byte("data"), off)
				}
			}
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			s, err := Open(Local{}, src, PackOptions{Sparse: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			var b bytes.Buffer
			if err := s.Pack(&b); err != nil || b.Len() > 1<<20 {
				t.Fatalf("%v, a stream of %d bytes", err, b.Len())
			}
			if err := Unpack(Local{}, &b, dst, UnpackOptions{}); err != nil {
				t.Fatal(err)
			}
			got, err := os.Open(dst)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = got.Close() }()
			fi, _ := got.Stat()
			if st := fi.Sys().(*syscall.Stat_t); fi.Size() != size || st.Blocks*512 > 1<<20 {
				t.Errorf("%d bytes in %d blocks", fi.Size(), st.Blocks)
			}
			for _, off := range extents {
				p := make([]byte, 4)
				if _, err := got.ReadAt(p, off); err != nil || string(p) != "data" {
					t.Errorf("at %d: %q, %v", off, p, err)
				}
			}
		})
	}
}

func TestFollow(t *testing.T) {
	src := tree(t, "file", "link -> file", "loop -> loop")
	for follow, want := range map[bool]string{true: "link(file)", false: "link -> file"} {
		s, err := Open(Local{}, src+"/link", PackOptions{Follow: follow})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		dst := t.TempDir()
		if err := errors.Join(s.Pack(&b), s.Close(), Unpack(Local{}, &b, dst, UnpackOptions{})); err != nil {
			t.Fatal(err)
		}
		if got := list(t, dst); got != want && !follow {
			t.Errorf("follow %v: %s, want %s", follow, got, want)
		}
		if b, err := os.ReadFile(dst + "/link"); follow && (err != nil || string(b) != "file") {
			t.Errorf("follow: %q, %v", b, err)
		}
	}
	if _, err := Open(Local{}, src+"/loop", PackOptions{Follow: true}); err == nil {
		t.Error("a loop of links was followed")
	}
}

// archive writes a tar of these headers; Size is the length of the content,
// which is the name.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		err := w.WriteHeader(&h)
		if err == nil && h.Typeflag == tar.TypeReg {
			_, err = io.WriteString(w, h.Name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reg(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func dir(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }

func sym(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func hard(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// Nothing that a stream says is written outside of the destination.
func TestHostileStreams(t *testing.T) {
	long := strings.Repeat("x", 5000)
	deep := strings.Repeat("d/", maxDepth+1)
	for name, headers := range map[string][]tar.Header{
		"..":                             {dir("d/"), reg("d/../../victim/x")},
		"..  at the top":                 {reg("../victim/x")},
		"a top that is ..":               {dir("..")},
		"absolute":                       {reg("/tmp/fcvm-must-not-be-there")},
		"absolute, later":                {dir("d/"), reg("/tmp/fcvm-must-not-be-there")},
		"another top":                    {dir("d/"), reg("e/x")},
		"a link and a file through it":   {dir("d/"), sym("d/l", "../../victim"), reg("d/l/x")},
		"an absolute link and a file":    {dir("d/"), sym("d/l", "/"), reg("d/l/tmp/fcvm-must-not-be-there")},
		"links in a row":                 {dir("d/"), sym("d/a", ".."), sym("d/b", "a/.."), reg("d/b/victim/x")},
		"a link for the top, then below": {sym("d", "other"), reg("d/x")},
		"a directory over a link":        {dir("d/"), sym("d/l", "../../victim"), dir("d/l/"), reg("d/l/x")},
		"a hard link outside":            {dir("d/"), hard("d/h", "../victim/secret")},
		"a hard link outside, absolute":  {dir("d/"), hard("d/h", "/etc/passwd")},
		"a hard link through a link":     {dir("d/"), sym("d/l", "../../victim"), hard("d/h", "d/l/secret")},
		"a hard link at the top":         {hard("d", "other/x")},
		"a hard link to nothing":         {dir("d/"), hard("d/h", "d/none")},
		"a hard link to a directory":     {dir("d/"), dir("d/e/"), hard("d/h", "d/e")},
		"a file twice at the top":        {reg("d"), reg("d")},
		"a file, then below it":          {dir("d/"), reg("d/f"), reg("d/f/x")},
		"a long name":                    {dir("d/"), reg("d/" + long)},
		"a long target":                  {dir("d/"), sym("d/l", long)},
		"too deep":                       {dir("d/"), reg("d/" + deep + "x")},
		"a file that is ..":              {dir("d/"), dir("d/e/"), reg("d/e/../..")},
	} {
		t.Run(name, func(t *testing.T) {
			base := tree(t, "victim/", "victim/secret", "dst/", "dst/other/", "dst/other/x")
			before := list(t, filepath.Join(base, "victim"))
			err := Unpack(Local{}, bytes.NewReader(archive(t, headers...)), filepath.Join(base, "dst"), UnpackOptions{})
			if err == nil {
				t.Error("it was taken")
			}
			if got := list(t, filepath.Join(base, "victim")); got != before {
				t.Errorf("written outside: %s", got)
			}
			if got, _ := os.ReadDir(base); len(got) != 2 {
				t.Errorf("written outside: %s", list(t, base))
			}
			if _, err := os.Lstat("/tmp/fcvm-must-not-be-there"); err == nil {
				t.Error("written outside, absolutely")
			}
			if b, err := os.ReadFile(filepath.Join(base, "dst/other/x")); err != nil || string(b) != "x" {
				t.Errorf("what was beside it: %q, %v", b, err)
			}
		})
	}
}

// A hard link or symbolic link that the stream has made is no way to write to
// what it leads to: what is there is removed first.
func TestEntriesReplaceAndDoNotWriteThrough(t *testing.T) {
	base := tree(t, "keep", "dst/", "dst/d/", "dst/d/mine", "dst/d/out -> ../../keep")
	in := archive(t, dir("d/"), hard("d/h", "d/mine"), reg("d/h"), reg("d/out"))
	if err := Unpack(Local{}, bytes.NewReader(in), filepath.Join(base, "dst"), UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"keep": "keep", "dst/d/mine": "mine", "dst/d/h": "d/h", "dst/d/out": "d/out"} {
		if b, err := os.ReadFile(filepath.Join(base, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestDevicesAreLeftOut(t *testing.T) {
	var skipped []string
	in := archive(t, dir("d/"), tar.Header{Typeflag: tar.TypeChar, Name: "d/null", Devmajor: 1, Devminor: 3},
		tar.Header{Typeflag: tar.TypeBlock, Name: "d/sda", Devmajor: 8}, tar.Header{Typeflag: tar.TypeFifo, Name: "d/fifo"}, reg("d/x"))
	dst := t.TempDir()
	err := Unpack(Local{}, bytes.NewReader(in), dst, UnpackOptions{Skipped: func(name, _ string) { skipped = append(skipped, name) }})
	if err != nil || fmt.Sprint(skipped) != "[null sda]" {
		t.Errorf("%v, left out %q", err, skipped)
	}
	if got := plainNames(list(t, dst)); got != "d/ d/fifo d/x" {
		t.Errorf("got %s", got)
	}
}

func TestExtractTakesAnyArchive(t *testing.T) {
	dst := tree(t, "usr/", "usr/bin/", "bin -> usr/bin")
	in := archive(t, reg("a/b/c"), dir("bin/"), reg("bin/tool"), reg("/abs"), reg("top"))
	if err := Unpack(Local{}, bytes.NewReader(in), dst, UnpackOptions{Extract: true}); err != nil {
		t.Fatal(err)
	}
	if got, want := plainNames(list(t, dst)), "a/ a/b/ a/b/c abs bin -> usr/bin top usr/ usr/bin/ usr/bin/tool"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := Unpack(Local{}, bytes.NewReader(in), dst+"/none", UnpackOptions{Extract: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into nothing: %v", err)
	}
	for _, bad := range [][]tar.Header{{reg("../x")}, {sym("l", "/tmp"), reg("l/fcvm-must-not-be-there")}} {
		if err := Unpack(Local{}, bytes.NewReader(archive(t, bad...)), dst, UnpackOptions{Extract: true}); err == nil {
			t.Errorf("%s was taken", bad[0].Name)
		}
	}
}

func TestTruncatedStreams(t *testing.T) {
	whole := archive(t, dir("d/"), reg("d/first"), reg("d/second"))
	for n := range len(whole) - 2*tarBlock {
		if n%tarBlock == 0 || n%97 != 0 {
			continue // a cut between two entries shows to whoever carries the stream
		}
		dst := t.TempDir()
		if err := Unpack(Local{}, bytes.NewReader(whole[:n]), dst, UnpackOptions{}); err == nil {
			t.Errorf("%d of %d bytes were enough", n, len(whole))
		}
		for _, f := range []string{"first", "second"} {
			if b, err := os.ReadFile(filepath.Join(dst, "d", f)); err == nil && string(b) != "d/"+f {
				t.Errorf("after %d bytes half a file is left: %q", n, b)
			}
		}
	}
	for _, in := range [][]byte{nil, make([]byte, 4096), []byte("this is no archive"), bytes.Repeat([]byte("no archive "), 1000)} {
		if err := Unpack(Local{}, bytes.NewReader(in), t.TempDir(), UnpackOptions{}); !errors.Is(err, ErrStream) {
			t.Errorf("%.20q: %v, want ErrStream", in, err)
		}
	}
}

func TestHugeSizes(t *testing.T) {
	for _, size := range []int64{maxFile + 1, 1<<63 - 1, 1 << 40} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: size, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte("little"))
		dst := t.TempDir()
		if err := Unpack(Local{}, &b, dst, UnpackOptions{}); err == nil {
			t.Errorf("size %d was taken", size)
		}
		if got := list(t, dst); got != "" {
			t.Errorf("size %d: it has left %s", size, got)
		}
	}
}

func TestChangesWhileItIsRead(t *testing.T) {
	src := tree(t, "f")
	s, err := Open(Local{}, src+"/f", PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	shrink := writerFunc(func(p []byte) (int, error) { return len(p), os.Truncate(src+"/f", 0) })
	if err := s.Pack(shrink); !errors.Is(err, ErrChanged) {
		t.Errorf("got %v, want ErrChanged", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
