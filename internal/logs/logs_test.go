package logs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	defer f.Close()
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
