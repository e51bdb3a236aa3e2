package snapshot

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestExportAndImport(t *testing.T) {
	ctx := t.Context()
	s := New(t.TempDir())
	snap := take(t, s, "warm")
	defer snap.Release()
	var archive bytes.Buffer
	if err := snap.Export(ctx, &archive); err != nil {
		t.Fatal(err)
	}
	if archive.Len() > memorySize/8 {
		t.Errorf("an archive of %d bytes for next to nothing", archive.Len())
	}
	if _, err := s.Import(ctx, bytes.NewReader(archive.Bytes()), "", nil); !errors.Is(err, ErrNameTaken) {
		t.Errorf("import beside the original: %v", err)
	}
	there := New(t.TempDir())
	got, err := there.Import(ctx, bytes.NewReader(archive.Bytes()), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if got.Manifest.Name != "warm" || got.Manifest.ID == snap.Manifest.ID {
		t.Errorf("imported as %s, %s", got.Manifest.Name, got.Manifest.ID)
	}
	for _, f := range testFiles {
		want, err1 := os.ReadFile(snap.Path(f))
		have, err2 := os.ReadFile(got.Path(f))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(want, have) {
			t.Errorf("%s differs: %v", f, err)
		}
	}
	st, err := os.Stat(got.Memory())
	if err != nil || st.Sys().(*syscall.Stat_t).Blocks*512 > memorySize/4 {
		t.Errorf("the memory has no holes: %+v, %v", st, err)
	}
	damaged(t, archive.Bytes())
}

// One that had no name would go with its first user: it gets one, and stays.
func TestImportGivesAName(t *testing.T) {
	snap := take(t, New(t.TempDir()), "")
	defer snap.Release()
	var archive bytes.Buffer
	if err := snap.Export(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	there := New(t.TempDir())
	for _, want := range []string{"web-1", "web-2"} {
		got, err := there.Import(t.Context(), bytes.NewReader(archive.Bytes()), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		got.Release()
		if e, err := there.Find(want); err != nil || e.Manifest.ID != got.Manifest.ID {
			t.Errorf("imported as %q; find %s: %v", got.Manifest.Name, want, err)
		}
	}
}

// Whether there is room for an archive is known before any of it is written.
func TestImportNeedsRoom(t *testing.T) {
	ctx := t.Context()
	snap := take(t, New(t.TempDir()), "warm")
	defer snap.Release()
	for _, f := range snap.Manifest.Files {
		want := int64(4 * digestChunk) // all but the state have data in four places
		if f.Name == StateName {
			want = f.Size
		}
		if f.Data != want {
			t.Errorf("%s has %d bytes of data, not %d", f.Name, f.Data, want)
		}
	}
	for _, data := range []int64{maxFile, 0} { // 0: it does not say how much there is
		snap.Manifest.Files[0].Size, snap.Manifest.Files[0].Data = maxFile, data
		m, err := json.Marshal(snap.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		z, err := zstd.NewWriter(&archive)
		if err != nil {
			t.Fatal(err)
		}
		w := tar.NewWriter(z)
		if err := errors.Join(entry(w, manifestName, m), w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if _, err := New(dir).Import(ctx, &archive, "", nil); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "it takes up to") {
			t.Errorf("%d bytes of data: %v", data, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 1 {
			t.Errorf("left %v, %v", left, err)
		}
	}
}

// A file without data takes no room, and may have none, if it says so.
func TestRoomOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zeros")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, memorySize)); err != nil {
		t.Fatal(err)
	}
	zeros, err := Digest(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file File
		want int64
	}{
		"with data":     {File{Size: memorySize, Data: 10, Digest: "x"}, 10},
		"zeros":         {File{Size: memorySize, Digest: zeros}, 0},
		"other zeros":   {File{Size: memorySize + 1, Digest: zeros}, memorySize + 1},
		"nobody counts": {File{Size: memorySize, Digest: "x"}, memorySize},
	} {
		if got := c.file.room(); got != c.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}

// damaged tries what is not, or not quite, what was exported.
func damaged(t *testing.T, whole []byte) {
	t.Helper()
	flipped := slices.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{
		"empty": nil, "garbage": []byte(strings.Repeat("no archive", 1000)),
		"cut": whole[:len(whole)/2], "a bit": flipped,
	} {
		leavesNothing(t, name, b)
	}
	for name, h := range map[string]tar.Header{
		"a symbolic link":  {Name: "memory/" + strings.Repeat("0", 16), Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		"a hard link":      {Name: "memory/" + strings.Repeat("0", 16), Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
		"a path out of it": {Name: "../../memory", Typeflag: tar.TypeReg},
		"another file":     {Name: "other/" + strings.Repeat("0", 16), Typeflag: tar.TypeReg},
		"a bad offset":     {Name: "memory/xyz", Typeflag: tar.TypeReg},
		"beyond the end":   {Name: "memory/0000000000800000", Typeflag: tar.TypeReg, Size: 65536},
		"a negative one":   {Name: "memory/-000000000010000", Typeflag: tar.TypeReg, Size: 1},
	} {
		leavesNothing(t, name, archiveWith(t, whole, h))
	}
}

func leavesNothing(t *testing.T, name string, b []byte) {
	t.Helper()
	dir := t.TempDir()
	_, err := New(dir).Import(t.Context(), bytes.NewReader(b), "", nil)
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("%s: %v", name, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != lockName {
			t.Errorf("%s: left %s", name, e.Name())
		}
	}
}

// archiveWith is an archive with one more entry, after the manifest.
func archiveWith(t *testing.T, whole []byte, h tar.Header) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var out bytes.Buffer
	zw, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	r, w := tar.NewReader(z), tar.NewWriter(zw)
	first, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, first.Size)
	if _, err := r.Read(b); err != nil && first.Size > 0 && !strings.Contains(err.Error(), "EOF") {
		t.Fatal(err)
	}
	h.Mode = 0o400
	err = errors.Join(entry(w, first.Name, b), w.WriteHeader(&h))
	if h.Size > 0 {
		_, werr := w.Write(make([]byte, h.Size))
		err = errors.Join(err, werr)
	}
	if err = errors.Join(err, w.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
