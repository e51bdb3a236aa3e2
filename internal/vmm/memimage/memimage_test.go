package memimage

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const testPages = 700 // more than a chunk

// image makes a file with data in these pages, and returns what is in it.
func image(t *testing.T, name string, data ...int) (*os.File, []byte) {
	t.Helper()
	f, err := Create(filepath.Join(t.TempDir(), name), testPages*Page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	content := make([]byte, testPages*Page)
	r := rand.NewChaCha8([32]byte{})
	for _, page := range data {
		_, _ = r.Read(content[page*Page : (page+1)*Page])
		if _, err := f.WriteAt(content[page*Page:(page+1)*Page], int64(page*Page)); err != nil {
			t.Fatal(err)
		}
	}
	return f, content
}

func stored(t *testing.T, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512 / Page
}

func content(t *testing.T, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCreate(t *testing.T) {
	f, want := image(t, "memory")
	if !bytes.Equal(content(t, f), want) || stored(t, f) != 0 {
		t.Errorf("a new file is no hole: it takes up %d pages", stored(t, f))
	}
	if st, err := f.Stat(); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := Create(f.Name(), 1); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
}

func TestCloseOrRemove(t *testing.T) {
	f, _ := image(t, "memory")
	if err := CloseOrRemove(f, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.Name()); err != nil {
		t.Error(err)
	}
	f, _ = image(t, "memory")
	if err := CloseOrRemove(f, fs.ErrInvalid); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if _, err := os.Stat(f.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestCopyLeavesZerosOut(t *testing.T) {
	src, want := image(t, "src", 0, 1, 5, 300, 511, 512, 699)
	// Zeros that are stored.
	if _, err := src.WriteAt(make([]byte, 100*Page), 100*Page); err != nil {
		t.Fatal(err)
	}
	extents, err := Extents(src, testPages*Page)
	if err != nil {
		t.Fatal(err)
	}
	dst, _ := image(t, "dst")
	if err := Copy(t.Context(), dst, src, extents); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, dst), want) {
		t.Error("the copy differs")
	}
	if n := stored(t, dst); n > 7 {
		t.Errorf("the copy of 7 pages takes up %d", n)
	}
}

func TestCopyGivesUp(t *testing.T) {
	src, _ := image(t, "src", 1)
	dst, _ := image(t, "dst")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	all := []Range{{0, testPages * Page}}
	if err := Copy(ctx, dst, src, all); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := PunchZeros(ctx, src, testPages*Page); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Copy(t.Context(), dst, src, []Range{{0, (testPages + 1) * Page}}); err == nil {
		t.Error("a file that is too short is copied")
	}
}

func TestPunchZeros(t *testing.T) {
	f, want := image(t, "memory", 3, 4, 255, 256, 600)
	for _, zeros := range [][2]int64{{0, 3}, {5, 200}, {601, 99}} {
		if _, err := f.WriteAt(make([]byte, zeros[1]*Page), zeros[0]*Page); err != nil {
			t.Fatal(err)
		}
	}
	if err := PunchZeros(t.Context(), f, testPages*Page); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, f), want) {
		t.Error("the content has changed")
	}
	if n := stored(t, f); n > 5 {
		t.Errorf("5 pages take up %d", n)
	}
}

func TestWithout(t *testing.T) {
	for _, c := range []struct{ all, except, want []Range }{
		{nil, []Range{{0, 4}}, nil},
		{[]Range{{0, 4}}, nil, []Range{{0, 4}}},
		{[]Range{{0, 4}}, []Range{{0, 4}}, nil},
		{[]Range{{0, 9}}, []Range{{2, 3}, {5, 6}}, []Range{{0, 2}, {3, 5}, {6, 9}}},
		{[]Range{{2, 4}, {6, 8}}, []Range{{0, 3}, {3, 7}}, []Range{{7, 8}}},
		{[]Range{{2, 4}, {6, 8}}, []Range{{3, 9}}, []Range{{2, 3}}},
	} {
		if d := cmp.Diff(c.want, Without(c.all, c.except)); d != "" {
			t.Errorf("%v without %v: %s", c.all, c.except, d)
		}
	}
}

func TestWithoutAny(t *testing.T) {
	ranges := rapid.Custom(func(t *rapid.T) []Range {
		var all []Range
		at := int64(0)
		for range rapid.IntRange(0, 5).Draw(t, "n") {
			at += rapid.Int64Range(0, 3).Draw(t, "gap")
			end := at + rapid.Int64Range(1, 4).Draw(t, "size")
			all = append(all, Range{at, end})
			at = end
		}
		return all
	})
	has := func(all []Range, at int64) bool {
		return slices.ContainsFunc(all, func(r Range) bool { return r.Start <= at && at < r.End })
	}
	rapid.Check(t, func(t *rapid.T) {
		all, except := ranges.Draw(t, "all"), ranges.Draw(t, "except")
		left := Without(all, except)
		for at := range int64(40) {
			if has(left, at) != (has(all, at) && !has(except, at)) {
				t.Fatalf("%v without %v is %v, which is wrong at %d", all, except, left, at)
			}
		}
	})
}
