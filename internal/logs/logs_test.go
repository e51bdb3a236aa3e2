package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRoundTripKeepsBytesAndStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte{0, 0xff, '\n', 'x'}, maxChunk) // several chunks
	for _, p := range []struct {
		s Stream
		b []byte
	}{{Stdout, []byte("out\n")}, {Stderr, []byte("err")}, {Stdout, big}} {
		if n, err := w.Stream(p.s).Write(p.b); err != nil || n != len(p.b) {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	got := map[Stream][]byte{}
	if err := Read(f, func(e Entry) error { got[e.Stream] = append(got[e.Stream], e.Data...); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := append([]byte("out\n"), big...); !bytes.Equal(got[Stdout], want) {
		t.Errorf("stdout: %d bytes, want %d", len(got[Stdout]), len(want))
	}
	if string(got[Stderr]) != "err" {
		t.Errorf("stderr: %q", got[Stderr])
	}
}

func TestReadLeavesOutAnUnfinishedLine(t *testing.T) {
	n := 0
	in := `{"t":"2026-01-01T00:00:00Z","s":"out","d":"eA=="}` + "\n" + `{"t":"2026`
	if err := Read(strings.NewReader(in), func(Entry) error { n++; return nil }); err != nil || n != 1 {
		t.Fatalf("%d entries, %v", n, err)
	}
}

func TestReadRefusesGarbageAndEndlessLines(t *testing.T) {
	for _, in := range []string{"garbage\n", strings.Repeat("x", maxLine+1)} {
		if err := Read(strings.NewReader(in), func(Entry) error { return nil }); err == nil {
			t.Errorf("%.10q…: no error", in)
		}
	}
}

func read(t *testing.T, path string) (entries []Entry) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Read(bytes.NewReader(b), func(e Entry) error { entries = append(entries, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestWritersDoNotMixTheirLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 50 {
				if _, err := fmt.Fprintf(w.Stream(Stdout), "%d %d\n", i, j); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	last := map[string]int{}
	entries := read(t, path)
	for _, e := range entries {
		var who string
		var n int
		if _, err := fmt.Sscanf(string(e.Data), "%s %d\n", &who, &n); err != nil || n != last[who] || e.Time.IsZero() {
			t.Errorf("%q after %d: %v", e.Data, last[who], err)
		}
		last[who]++
	}
	if len(entries) != 200 {
		t.Errorf("%d entries", len(entries))
	}
}

// A full disk costs what did not fit, not what comes before and after.
func TestHalfALineIsTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	out := w.Stream(Stdout)
	if _, err := out.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	// A limit on the file's size fails in the middle of a write, as a full disk does.
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(l unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	limit(unix.Rlimit{Cur: 1000, Max: old.Max})
	n, err := out.Write(make([]byte, 10_000))
	limit(old)
	if n != 0 || !errors.Is(err, unix.EFBIG) {
		t.Errorf("%d bytes written, %v", n, err)
	}
	if _, err := out.Write([]byte("after")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	es := read(t, path)
	if len(es) != 2 || string(es[0].Data) != "before" || string(es[1].Data) != "after" {
		t.Errorf("%+v", es)
	}
}

func TestReadStopsWhenAsked(t *testing.T) {
	line := `{"t":"2026-01-01T00:00:00Z","s":"out","d":"eA=="}` + "\n"
	enough := errors.New("enough")
	n := 0
	if err := Read(strings.NewReader(line+line), func(Entry) error { n++; return enough }); !errors.Is(err, enough) || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"t":"2026-01-01T00:00:00Z","s":"out","d":"eA=="}` + "\n{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		n := 0
		_ = Read(bytes.NewReader(in), func(Entry) error { n++; return nil })
		if lines := bytes.Count(in, []byte("\n")); n > lines {
			t.Errorf("%d entries in %d lines", n, lines)
		}
	})
}
