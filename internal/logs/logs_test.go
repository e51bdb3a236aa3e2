package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
	w, err := Create(path, 0)
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
	got := map[Stream][]byte{}
	for _, e := range read(t, path) {
		got[e.Stream] = append(got[e.Stream], e.Data...)
	}
	if want := append([]byte("out\n"), big...); !bytes.Equal(got[Stdout], want) {
		t.Errorf("stdout: %d bytes, want %d", len(got[Stdout]), len(want))
	}
	if string(got[Stderr]) != "err" {
		t.Errorf("stderr: %q", got[Stderr])
	}
}

const line = `{"t":"2026-01-01T00:00:00Z","s":"out","d":"eA=="}` + "\n"

func TestReadLeavesAnUnfinishedLineForTheNextTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := NewReader(path)
	defer func() { _ = r.Close() }()
	for _, step := range []struct {
		add  string
		want int
	}{{"", 0}, {line + line[:10], 1}, {"", 0}, {line[10:] + line, 2}, {line[:5], 0}} {
		appendTo(t, path, step.add)
		n := 0
		if err := r.Read(func(Entry) error { n++; return nil }); err != nil || n != step.want {
			t.Fatalf("after %q: %d entries, %v; want %d", step.add, n, err, step.want)
		}
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// What is broken costs nothing of what is whole.
func TestReadPassesOverGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	appendTo(t, path, line+"garbage\n"+strings.Repeat("x", 2*maxLine)+"\n"+`{"s":"third"}`+"\n"+line)
	r := NewReader(path)
	defer func() { _ = r.Close() }()
	n := 0
	if err := r.Read(func(Entry) error { n++; return nil }); err != nil || n != 2 || r.Broken() != 3 {
		t.Errorf("%d entries, %d broken, %v; want 2 and 3", n, r.Broken(), err)
	}
}

func read(t *testing.T, path string) (entries []Entry) {
	t.Helper()
	r := NewReader(path)
	defer func() { _ = r.Close() }()
	if err := r.Read(func(e Entry) error { entries = append(entries, e); return nil }); err != nil || r.Broken() > 0 {
		t.Fatalf("%d broken lines, %v", r.Broken(), err)
	}
	return entries
}

// The oldest goes when the limit is reached; a reader that keeps up sees all.
func TestALogIsBoundedAndFollowedThroughItsSegments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path, MinLimit)
	if err != nil {
		t.Fatal(err)
	}
	follower := NewReader(path)
	defer func() { _ = follower.Close() }()
	seen := 0
	const entries = 5000
	follow := func() {
		if err := follower.Read(func(e Entry) error {
			if want := fmt.Sprintf("%d\n", seen); !strings.HasPrefix(string(e.Data), want) {
				return fmt.Errorf("entry %d is %.10q", seen, e.Data)
			}
			seen++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range entries {
		if _, err := fmt.Fprintf(w.Stream(Stdout), "%d\n%s", i, strings.Repeat("x", 1000)); err != nil {
			t.Fatal(err)
		}
		if i == entries/2 { // as when the VM is started again
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if w, err = Create(path, MinLimit); err != nil {
				t.Fatal(err)
			}
		}
		if i%100 == 0 {
			follow()
		}
	}
	follow()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if seen != entries {
		t.Errorf("followed %d entries of %d", seen, entries)
	}
	kept := read(t, path)
	if last := string(kept[len(kept)-1].Data); !strings.HasPrefix(last, fmt.Sprintf("%d\n", entries-1)) {
		t.Errorf("the last entry is %.10q", last)
	}
	files, _ := filepath.Glob(path + "*")
	var size int64
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if len(files) != segments || size > MinLimit+segments*2000 || size < MinLimit/2 {
		t.Errorf("%d files of %d bytes for a limit of %d", len(files), size, MinLimit)
	}
}

func TestAReaderThatIsTooSlowIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := NewReader(path)
	defer func() { _ = r.Close() }()
	appendTo(t, path, line)
	var got []string
	look := func() {
		if err := r.Read(func(e Entry) error { got = append(got, fmt.Sprint(e.Lost)); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	appendTo(t, path+".7", line)
	look()
	look()
	if want := "0 -1 0"; strings.Join(got, " ") != want {
		t.Errorf("entries %q, want %s", got, want)
	}
}

func TestAWriterContinuesWhatAKilledOneHasLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	appendTo(t, path, line+line[:20])
	w, err := Create(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Stream(Stderr).Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if es := read(t, path); len(es) != 2 || string(es[1].Data) != "y" {
		t.Errorf("%+v", es)
	}
}

func TestTrimBoundsWhatAFileTakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	appendTo(t, path, strings.Repeat("0123456\n", 1<<16)+"the end\n")
	const keep = 64 << 10
	for range 2 {
		if err := Trim(path, keep); err != nil {
			t.Fatal(err)
		}
	}
	appendTo(t, path, "more\n")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > 2*keep {
		t.Errorf("%d bytes are left", st.Blocks*512)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := SkipHole(f); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil || len(b) > 2*keep || !strings.HasSuffix(string(b), "the end\nmore\n") {
		t.Errorf("%d bytes, %v, the last: %.20q", len(b), err, b[max(0, len(b)-20):])
	}
}

func TestWritersDoNotMixTheirLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path, 0)
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

// A full disk costs what did not fit, not what comes before and after, and the
// log says so.
func TestAFullDiskIsToldOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path, 0)
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
	if n != 10_000 || err != nil {
		t.Errorf("%d bytes written, %v; the container is not to know", n, err)
	}
	if n, why := w.Lost(); n != 10_000 || !errors.Is(why, unix.EFBIG) {
		t.Errorf("lost %d bytes for %v", n, why)
	}
	if _, err := out.Write([]byte("after")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	es := read(t, path)
	if len(es) != 3 || string(es[0].Data) != "before" || es[1].Lost != 10_000 || string(es[2].Data) != "after" {
		t.Errorf("%+v", es)
	}
}

func TestReadStopsWhenAsked(t *testing.T) {
	enough := errors.New("enough")
	n := 0
	if _, _, err := each(strings.NewReader(line+line), func(Entry) error { n++; return enough }); !errors.Is(err, enough) || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(line + "{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		entries := 0
		n, broken, err := each(bytes.NewReader(in), func(Entry) error { entries++; return nil })
		if lines := bytes.Count(in, []byte("\n")); entries+broken != lines || err != nil || n != int64(bytes.LastIndexByte(in, '\n')+1) {
			t.Errorf("%d entries and %d broken in %d lines, %d bytes, %v", entries, broken, lines, n, err)
		}
	})
}
