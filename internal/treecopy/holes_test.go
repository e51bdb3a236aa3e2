package treecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// huge is so large that its holes take hours to read as zeros.
const huge = 8 << 40

// within fails a test that takes too long, where it would take for ever.
func within(t *testing.T, d time.Duration, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(d):
		t.Fatalf("it still goes on after %s", d)
		return nil
	}
}

// GNU tar writes four formats of sparse files.
func TestSparseFilesOfGNUTar(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "tar", "--version").Output(); err != nil || !bytes.Contains(out, []byte("GNU")) {
		t.Skip("no GNU tar")
	}
	src := t.TempDir()
	offsets := []int64{0, 1 << 20, huge - 4096}
	for i := range int64(60) { // more than fit into a header, and into the block behind it
		offsets = append(offsets, (i+1)<<30)
	}
	f, err := os.Create(filepath.Join(src, "disk"))
	if err == nil {
		err = f.Truncate(huge)
	}
	for _, off := range offsets {
		if err == nil {
			_, err = f.WriteAt(fmt.Appendf(nil, "at %d", off), off)
		}
	}
	err = errors.Join(err, f.Close(), os.WriteFile(filepath.Join(src, "zz"), []byte("zz"), 0o600))
	if err != nil {
		t.Skipf("no file of 8 TiB can be made here: %v", err)
	}
	for _, args := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			args := append(args, "-C", src, "-cSf", "-", "disk", "zz")
			stream, err := exec.CommandContext(t.Context(), "tar", args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			dst := t.TempDir()
			err = within(t, time.Minute, func() error {
				return Unpack(Local{}, bytes.NewReader(stream), dst, UnpackOptions{Extract: true})
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.Open(filepath.Join(dst, "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = got.Close() }()
			if fi, err := got.Stat(); err != nil || fi.Size() != huge {
				t.Errorf("%d bytes, %v", fi.Size(), err)
			}
			for _, off := range offsets {
				want := fmt.Sprintf("at %d", off)
				p := make([]byte, len(want))
				if _, err := got.ReadAt(p, off); err != nil || string(p) != want {
					t.Errorf("at %d: %q, %v", off, p, err)
				}
			}
			if b, err := os.ReadFile(filepath.Join(dst, "zz")); err != nil || string(b) != "zz" {
				t.Errorf("what follows: %q, %v", b, err)
			}
		})
	}
}

// mapped is a stream of a sparse file "d/f" with this map and as much data.
func mapped(t *testing.T, size int64, table string, data int) []byte {
	t.Helper()
	body := append(padded([]byte(table)), bytes.Repeat([]byte("x"), data)...)
	records := paxRecords([][2]string{
		{"GNU.sparse.major", "1"},
		{"GNU.sparse.minor", "0"},
		{"GNU.sparse.name", "d/f"},
		{"GNU.sparse.realsize", strconv.FormatInt(size, 10)},
	})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := dir("d/")
	if err := errors.Join(w.WriteHeader(&h), w.Flush()); err != nil {
		t.Fatal(err)
	}
	b.Write(ustarHeader("PaxHeaders.0/f", tar.TypeXHeader, 0o644, int64(len(records)), time.Time{}))
	b.Write(padded(records))
	b.Write(ustarHeader("GNUSparseFile.0/f", tar.TypeReg, 0o644, int64(len(body)), time.Time{}))
	b.Write(padded(body))
	b.Write(archive(t, reg("d/next")))
	return b.Bytes()
}

func TestMapsOfHoles(t *testing.T) {
	for name, tc := range map[string]struct {
		table string
		data  int
		bad   bool
	}{
		"a hole only":                 {"1\n8796093022208\n0\n", 0, false},
		"data":                        {"2\n4096\n5\n8796093022208\n0\n", 5, false},
		"more data than it says":      {"2\n4096\n5\n8796093022208\n0\n", 5000, false},
		"less data than it says":      {"2\n4096\n5000\n8796093022208\n0\n", 5, true},
		"much less, to the end":       {"2\n4096\n4611686018\n8796093022208\n0\n", 5, true},
		"none":                        {"0\n", 0, false},
		"backwards":                   {"2\n4096\n5\n0\n5\n", 10, true},
		"over the end":                {"1\n8796093022207\n5\n", 5, true},
		"negative":                    {"1\n-1\n5\n", 5, true},
		"fewer numbers than it says":  {"2\n4096\n5\n", 5, true},
		"more numbers than it says":   {"1\n4096\n5\n7\n7\n", 5, true},
		"something behind the number": {"1\n4096\n5\nustar", 5, true},
	} {
		t.Run(name, func(t *testing.T) {
			dst := t.TempDir()
			err := within(t, time.Minute, func() error {
				return Unpack(Local{}, bytes.NewReader(mapped(t, huge, tc.table, tc.data)), dst, UnpackOptions{})
			})
			if got := err != nil; got != tc.bad {
				t.Fatalf("got %v, want an error: %v", err, tc.bad)
			}
			if b, err := os.ReadFile(filepath.Join(dst, "d/next")); !tc.bad && (err != nil || string(b) != "d/next") {
				t.Errorf("what follows: %q, %v", b, err)
			}
			if _, err := os.Stat(filepath.Join(dst, "d/f")); tc.bad && err == nil {
				t.Error("half a file is left")
			}
		})
	}
}

// A copy ends with its stream, also between two pieces of a sparse file.
func TestStreamThatEndsInASparseFile(t *testing.T) {
	stream := mapped(t, huge, "2\n4096\n100000\n8796093022208\n0\n", 100000)
	errTest := errors.New("interrupted")
	cut := io.MultiReader(bytes.NewReader(stream[:10000]), errorReader{errTest})
	if err := Unpack(Local{}, cut, t.TempDir(), UnpackOptions{}); !errors.Is(err, errTest) {
		t.Errorf("got %v", err)
	}
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }
