package snapshot

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
)

// withSet is an archive of a snapshot with this working set.
func withSet(t *testing.T, set []byte) []byte {
	t.Helper()
	snap := take(t, New(t.TempDir()), "warm")
	defer snap.Release()
	if err := os.WriteFile(snap.Path(WorkingSetName), set, 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := snap.Export(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(snap.Manifest.Files, isWorkingSet) {
		t.Error("it counts as a file of the snapshot, which never changes")
	}
	return archive.Bytes()
}

// A working set travels with the snapshot, whatever is in it: whoever uses it looks.
func TestArchiveCarriesTheWorkingSet(t *testing.T) {
	largest := bytes.Repeat([]byte{0xa5}, int(maxWorkingSet(memorySize)))
	if want := 32 + memorySize/4096/8 + 32; len(largest) != want {
		t.Errorf("the largest one has %d bytes, not %d", len(largest), want)
	}
	holes := make([]byte, len(largest))
	for name, c := range map[string]struct{ set, want []byte }{
		"a set":     {largest, largest},
		"broken":    {[]byte("nonsense"), []byte("nonsense")},
		"zeros":     {holes, holes},
		"too large": {append(slices.Clone(largest), 1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(t.TempDir())
			got, err := s.Import(t.Context(), bytes.NewReader(withSet(t, c.set)), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Release()
			set, err := os.ReadFile(got.Path(WorkingSetName))
			if !bytes.Equal(set, c.want) || (err == nil) != (c.want != nil) {
				t.Errorf("%d bytes arrived, %v; want %d", len(set), err, len(c.want))
			}
			// Another may take its place, and be taken along in turn.
			if err := os.WriteFile(got.Path(WorkingSetName), []byte("another"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := got.Verify(t.Context(), true); err != nil {
				t.Errorf("with another set: %v", err)
			}
			if err := got.Export(t.Context(), io.Discard); err != nil {
				t.Errorf("and exported again: %v", err)
			}
		})
	}
}

// The set that is recorded while the archive is written does not mix with the one that
// the archive's manifest tells of.
func TestWorkingSetThatIsRecordedMeanwhile(t *testing.T) {
	snap := take(t, New(t.TempDir()), "warm")
	defer snap.Release()
	path := snap.Path(WorkingSetName)
	if err := os.WriteFile(path, []byte("the first"), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := snap.openWorkingSet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer set.close()
	if err := errors.Join(os.WriteFile(path+"2", []byte("the second"), 0o600), os.Rename(path+"2", path)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(set.file); err != nil || string(b) != "the first" {
		t.Errorf("what is packed: %q, %v", b, err)
	}
}

func TestWorkingSetsOfHostileArchives(t *testing.T) {
	archive := withSet(t, []byte("a set"))
	manifest := func(change func(f *File)) func(name string, b []byte) []byte {
		return inJSON(t, manifestName, func(m *Manifest) { change(&m.Files[slices.IndexFunc(m.Files, isWorkingSet)]) })
	}
	const data = WorkingSetName + "/0000000000000000"
	for name, change := range map[string]func(name string, b []byte) []byte{
		"too large":      manifest(func(f *File) { f.Size = maxWorkingSet(memorySize) + 1 }),
		"of many TiB":    manifest(func(f *File) { f.Size, f.Data = maxFile, maxFile }),
		"other contents": manifest(func(f *File) { f.Digest = digestPrefix + "0" }),
		"another size":   manifest(func(f *File) { f.Size++ }),
		"a changed byte": inEntry(data, func(b []byte) []byte { b[0]++; return b }),
		"a longer one":   inEntry(data, func(b []byte) []byte { return append(b, 1) }),
	} {
		leavesNothing(t, name, rewritten(t, archive, change))
	}
}
