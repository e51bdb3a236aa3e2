package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// taker keeps what it is given.
type taker struct {
	has  []PartKind
	got  map[PartKind]string // contents; "here" of what was here
	err  error
	held int
}

func (k *taker) Lacks(p Part) bool { return !slices.Contains(k.has, p.Kind) }

func (k *taker) Take(_ context.Context, parts []Part) (func(), error) {
	k.got = map[PartKind]string{}
	for _, p := range parts {
		if k.got[p.Kind] = "here"; p.Path != "" {
			f, err := os.Open(p.Path)
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(io.LimitReader(f, 100))
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
			k.got[p.Kind] = string(bytes.TrimRight(b, "\x00"))
		}
	}
	k.held++
	return func() { k.held-- }, k.err
}

// carrying is the snapshot of a VM that had a kernel, a root and an image, and an
// archive of it with these parts.
func carrying(t *testing.T, s *Store) (*Snapshot, []byte) {
	t.Helper()
	d, err := s.Begin("warm", memorySize)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, d)
	m := testManifest()
	m.Needs.KernelID, m.Needs.RootID = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
	snap, err := d.Commit(t.Context(), m, testFiles)
	if err != nil {
		t.Fatal(err)
	}
	var parts []Part
	for _, k := range []PartKind{PartKernel, PartRoot, PartImage} {
		path := filepath.Join(t.TempDir(), string(k))
		err := os.WriteFile(path, []byte("the "+string(k)), 0o600)
		if err == nil && k == PartRoot { // a large one, with little in it
			err = os.Truncate(path, 1<<30)
		}
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, Part{Kind: k, ID: m.Needs.needed(k), Path: path})
	}
	var archive bytes.Buffer
	if err := snap.Export(t.Context(), &archive, parts...); err != nil {
		t.Fatal(err)
	}
	return snap, archive.Bytes()
}

func TestArchiveCarriesParts(t *testing.T) {
	snap, archive := carrying(t, New(t.TempDir()))
	defer snap.Release()
	if len(archive) > 1<<20 {
		t.Errorf("an archive of %d bytes for next to nothing", len(archive))
	}
	for name, tc := range map[string]struct {
		taker *taker
		want  map[PartKind]string
	}{
		"all":     {&taker{}, map[PartKind]string{PartKernel: "the kernel", PartRoot: "the root", PartImage: "the image"}},
		"some":    {&taker{has: []PartKind{PartRoot}}, map[PartKind]string{PartKernel: "the kernel", PartRoot: "here", PartImage: "the image"}},
		"refused": {&taker{err: ErrMismatch}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			got, err := New(dir).Import(t.Context(), bytes.NewReader(archive), "", tc.taker)
			if !errors.Is(err, tc.taker.err) {
				t.Fatal(err)
			}
			if err != nil {
				if left, _ := os.ReadDir(dir); len(left) != 1 {
					t.Errorf("left: %v", left)
				}
				return
			}
			defer got.Release()
			for k, want := range tc.want {
				if tc.taker.got[k] != want {
					t.Errorf("%s: %q", k, tc.taker.got[k])
				}
			}
			if tc.taker.held != 0 {
				t.Error("they are held for ever")
			}
			if left, err := filepath.Glob(filepath.Join(got.Dir, ".*")); err != nil || len(left) != 0 {
				t.Errorf("in the snapshot is left: %v, %v", left, err)
			}
		})
	}
	// Without anybody to take them they are passed over.
	got, err := New(t.TempDir()).Import(t.Context(), bytes.NewReader(archive), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	got.Release()
}

func TestPartsOfHostileArchives(t *testing.T) {
	snap, archive := carrying(t, New(t.TempDir()))
	defer snap.Release()
	list := func(change func(p []Part) []Part) func(name string, b []byte) []byte {
		return inJSON(t, partsName, func(l *partList) { l.Parts = change(l.Parts) })
	}
	one := func(change func(p *Part)) func(name string, b []byte) []byte {
		return list(func(p []Part) []Part { change(&p[0]); return p })
	}
	const data = ".kernel/0000000000000000"
	for name, change := range map[string]func(name string, b []byte) []byte{
		"no list": func(_ string, b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(`"parts"`), []byte(`"parts`))
		},
		"another id":      one(func(p *Part) { p.ID = "cccccccccccccccc" }),
		"a path as id":    one(func(p *Part) { p.ID = "../../x" }),
		"another kind":    one(func(p *Part) { p.Kind = "program" }),
		"a path as kind":  one(func(p *Part) { p.Kind, p.File.Name = "/../x", "./../x" }),
		"a path as name":  one(func(p *Part) { p.File.Name = "../../kernel" }),
		"a file's name":   one(func(p *Part) { p.File.Name = MemoryName }),
		"one twice":       list(func(p []Part) []Part { return append(p, p[0]) }),
		"a negative size": one(func(p *Part) { p.File.Size = -1 }),
		"a huge one":      one(func(p *Part) { p.File.Size, p.File.Data = maxFile+1, 1 }),
		"less data":       one(func(p *Part) { p.File.Data = 1 }),
		"other contents":  one(func(p *Part) { p.File.Digest = digestPrefix + "0" }),
		"a changed byte":  inEntry(data, func(b []byte) []byte { b[0]++; return b }),
		"a longer one":    inEntry(data, func(b []byte) []byte { return append(b, 1) }),
	} {
		t.Run(name, func(t *testing.T) {
			dir, k := t.TempDir(), new(taker)
			_, err := New(dir).Import(t.Context(), bytes.NewReader(rewritten(t, archive, change)), "", k)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
			if k.got != nil {
				t.Errorf("it was taken: %v", k.got)
			}
			if left, _ := os.ReadDir(dir); len(left) > 1 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// rewritten is an archive in which the contents of entries are others.
func rewritten(t *testing.T, archive []byte, change func(name string, b []byte) []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(archive))
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
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, rerr := io.ReadAll(r)
		if err := errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		if err := entry(w, h.Name, change(h.Name, b)); err != nil {
			t.Fatal(fmt.Errorf("%s: %w", h.Name, err))
		}
	}
	if err := errors.Join(w.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// inJSON changes what one entry of an archive says, and leaves the others.
func inJSON[T any](t *testing.T, entry string, change func(v *T)) func(name string, b []byte) []byte {
	return inEntry(entry, func(b []byte) []byte {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		change(&v)
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	})
}

// inEntry changes one entry of an archive and leaves the others.
func inEntry(entry string, change func(b []byte) []byte) func(name string, b []byte) []byte {
	return func(name string, b []byte) []byte {
		if name == entry {
			return change(b)
		}
		return b
	}
}
