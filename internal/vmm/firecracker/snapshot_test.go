package firecracker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
	"github.com/fcvm/fcvm/internal/vsocklink"
)

// fake is a machine whose Firecracker is a server in this process.
type fake struct {
	*machine
	asked  []string
	answer func(method, path string, body []byte) (status int, answer string)
}

func newFake(t *testing.T, memory int64) *fake {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, apiSocket))
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{machine: &machine{dir: dir, memory: memory, api: newAPIClient(dir, make(chan struct{})), agent: vsocklink.NewHost(nil)}}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		status, answer := f.answer(r.Method, r.URL.Path, body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() {
		f.base.forget()
		f.api.close()
		_ = srv.Close()
	})
	return f
}

func fault400(message string) (int, string) {
	return http.StatusBadRequest, fmt.Sprintf(`{"fault_message":%q}`, message)
}

// writer answers to PUT /snapshot/create as Firecracker does: it writes these
// pages into the file, all of them for a full snapshot.
func writer(t *testing.T, pages map[int]byte) func(string, string, []byte) (int, string) {
	return func(_, _ string, body []byte) (int, string) {
		var c snapshotCreate
		if err := json.Unmarshal(body, &c); err != nil {
			t.Error(err)
		}
		f, err := os.OpenFile(c.Memory, os.O_WRONLY, 0)
		if err != nil {
			return fault400(err.Error())
		}
		defer func() { _ = f.Close() }()
		for i := range testPages {
			b, changed := pages[i]
			if !changed && c.Type == "Diff" {
				continue
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{b}, memimage.Page), int64(i)*memimage.Page); err != nil {
				return fault400(err.Error())
			}
		}
		return http.StatusNoContent, ""
	}
}

const testPages = 64

// memoryOf is what these pages make, over others.
func memoryOf(layers ...map[int]byte) []byte {
	b := make([]byte, testPages*memimage.Page)
	for _, pages := range layers {
		for i, v := range pages {
			copy(b[i*memimage.Page:], bytes.Repeat([]byte{v}, memimage.Page))
		}
	}
	return b
}

func filesIn(dir, name string) vmm.SnapshotFiles {
	return vmm.SnapshotFiles{Memory: filepath.Join(dir, name+".memory"), State: filepath.Join(dir, name+".state")}
}

func (f *fake) take(t *testing.T, to vmm.SnapshotFiles) []byte {
	t.Helper()
	if err := f.Snapshot(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if err := f.FinishSnapshot(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(to.Memory)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Each snapshot is whole, whatever the ones before it were.
func TestSnapshots(t *testing.T) {
	f := newFake(t, testPages*memimage.Page)
	dir := t.TempDir()
	first := map[int]byte{1: 1, 2: 1, 40: 1}
	f.answer = writer(t, first)
	if got := f.take(t, filesIn(dir, "full")); !bytes.Equal(got, memoryOf(first)) {
		t.Error("the full snapshot differs")
	}
	// A clone of it, which tracks what it writes.
	parent, err := os.Open(filesIn(dir, "full").Memory)
	if err != nil {
		t.Fatal(err)
	}
	f.base.track(parent)
	second := map[int]byte{2: 2, 3: 2, 40: 0} // page 40 has become zeros
	f.answer = writer(t, second)
	if got := f.take(t, filesIn(dir, "diff")); !bytes.Equal(got, memoryOf(first, second)) {
		t.Error("the first snapshot of changed pages differs")
	}
	extents := func(name string) (found []memimage.Range) {
		file, err := os.Open(filesIn(dir, name).Memory)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		if found, err = memimage.Extents(file, testPages*memimage.Page); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if got, want := extents("diff"), []memimage.Range{{Start: memimage.Page, End: 4 * memimage.Page}}; !slices.Equal(got, want) {
		t.Errorf("data in %v, not %v", got, want)
	}
	// One that fails: which pages have changed since when is not known any more.
	f.answer = func(string, string, []byte) (int, string) { return fault400("no") }
	to := filesIn(dir, "failed")
	if err := f.Snapshot(t.Context(), to); !errors.Is(err, errAPI) {
		t.Error(err)
	}
	for _, path := range []string{to.Memory, to.State} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", path)
		}
	}
	f.answer = writer(t, first)
	if got := f.take(t, filesIn(dir, "again")); !bytes.Equal(got, memoryOf(first)) {
		t.Error("the last snapshot differs")
	}
	var types []string
	for _, a := range f.asked {
		types = append(types, a[strings.Index(a, `"snapshot_type":"`)+17:][:4])
	}
	if want := []string{"Full", "Diff", "Diff", "Full"}; !slices.Equal(types, want) {
		t.Errorf("%q, not %q", types, want)
	}
	if err := f.Snapshot(t.Context(), filesIn(dir, "full")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
}

// tracking is a machine that was started from a snapshot of these pages, and
// remembers what it writes.
func tracking(t *testing.T, dir string, pages map[int]byte) *fake {
	t.Helper()
	f := newFake(t, testPages*memimage.Page)
	path := filepath.Join(dir, "parent")
	if err := os.WriteFile(path, memoryOf(pages), 0o600); err != nil {
		t.Fatal(err)
	}
	parent, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.base.track(parent)
	return f
}

// Snapshots that are taken before others are finished are whole, too, in
// whatever order they are finished, and so is the next one.
func TestSnapshotsBeforeOthersAreFinished(t *testing.T) {
	parent, first, second, third := map[int]byte{1: 1, 9: 1}, map[int]byte{2: 2}, map[int]byte{3: 3}, map[int]byte{4: 4}
	whole := memoryOf(parent, first, second)
	now := map[int]byte{} // all that a full snapshot writes
	for i := range testPages {
		now[i] = whole[i*memimage.Page]
	}
	for name, c := range map[string]struct {
		order []string
		fails bool // the second is not taken
	}{
		"in order":           {[]string{"a", "b"}, false},
		"the other way":      {[]string{"b", "a"}, false},
		"only the last":      {[]string{"b"}, false},
		"only the first":     {[]string{"a"}, false},
		"the second not had": {[]string{"a"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := tracking(t, dir, parent)
			f.answer = writer(t, first)
			if err := f.Snapshot(t.Context(), filesIn(dir, "a")); err != nil {
				t.Fatal(err)
			}
			f.answer = writer(t, now)
			if c.fails {
				f.answer = func(string, string, []byte) (int, string) { return fault400("no") }
			}
			if err := f.Snapshot(t.Context(), filesIn(dir, "b")); (err != nil) != c.fails {
				t.Fatal(err)
			}
			want := map[string][]byte{"a": memoryOf(parent, first), "b": whole}
			for _, name := range c.order {
				if err := f.FinishSnapshot(t.Context(), filesIn(dir, name)); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(filesIn(dir, name).Memory); err != nil || !bytes.Equal(got, want[name]) {
					t.Errorf("%s differs: %v", name, err)
				}
			}
			// Firecracker writes what has changed since b, or all there is.
			f.answer = func(method, path string, body []byte) (int, string) {
				pages := third
				if !bytes.Contains(body, []byte(`"Diff"`)) {
					pages = maps.Clone(now)
					maps.Copy(pages, third)
				}
				return writer(t, pages)(method, path, body)
			}
			if got := f.take(t, filesIn(dir, "c")); !bytes.Equal(got, memoryOf(parent, first, second, third)) {
				t.Error("the next one differs")
			}
		})
	}
}

// There must be room for all of the memory, unless only changes are written.
func TestWritesWhole(t *testing.T) {
	dir := t.TempDir()
	var m vmm.Machine = newFake(t, testPages*memimage.Page).machine
	if w, ok := m.(vmm.WholeWriter); !ok || !w.WritesWhole() {
		t.Error("a machine that tracks nothing")
	}
	f := tracking(t, dir, nil)
	if f.WritesWhole() {
		t.Error("a machine that tracks what it writes")
	}
	f.answer = writer(t, nil)
	if err := f.Snapshot(t.Context(), filesIn(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if !f.WritesWhole() {
		t.Error("while its last snapshot is not whole")
	}
	if err := f.FinishSnapshot(t.Context(), filesIn(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if f.WritesWhole() {
		t.Error("once its last snapshot is whole")
	}
}

// A snapshot that was taken is completed though the machine has ended meanwhile.
func TestFinishAfterTheEnd(t *testing.T) {
	dir := t.TempDir()
	parent, changed := map[int]byte{1: 1, 9: 1}, map[int]byte{2: 2}
	f := tracking(t, dir, parent)
	f.answer = writer(t, changed)
	to := filesIn(dir, "a")
	if err := f.Snapshot(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	f.base.forget()
	if err := f.FinishSnapshot(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to.Memory); err != nil || !bytes.Equal(got, memoryOf(parent, changed)) {
		t.Errorf("it differs: %v", err)
	}
}

// One snapshot is completed while the next one is taken and completed: nobody
// closes what the other reads.
func TestSnapshotsAtOnce(t *testing.T) {
	dir := t.TempDir()
	pages := map[int]byte{1: 1, 9: 1}
	f := tracking(t, dir, pages)
	f.answer = writer(t, pages)
	var all sync.WaitGroup
	for i := range 20 {
		to := filesIn(dir, fmt.Sprint(i))
		if err := f.Snapshot(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if err := f.FinishSnapshot(t.Context(), to); err != nil {
				t.Error(err)
			}
			if got, err := os.ReadFile(to.Memory); err != nil || !bytes.Equal(got, memoryOf(pages)) {
				t.Errorf("%s differs: %v", to.Memory, err)
			}
		})
	}
	all.Wait()
}

// A snapshot that is given up keeps nothing open, and the next one is whole.
func TestDropSnapshot(t *testing.T) {
	parent, first, second := map[int]byte{1: 1}, map[int]byte{2: 2}, map[int]byte{3: 3}
	for _, finished := range []bool{false, true} {
		dir := t.TempDir()
		f := tracking(t, dir, parent)
		f.answer = writer(t, first)
		if err := f.Snapshot(t.Context(), filesIn(dir, "a")); err != nil {
			t.Fatal(err)
		}
		if finished {
			if err := f.FinishSnapshot(t.Context(), filesIn(dir, "a")); err != nil {
				t.Fatal(err)
			}
		}
		f.DropSnapshot(filesIn(dir, "a"))
		f.DropSnapshot(filesIn(dir, "a")) // in vain
		if len(f.base.parents) != 0 || f.base.memory != nil {
			t.Errorf("finished: %t: it keeps %v, %v", finished, f.base.parents, f.base.memory)
		}
		all := map[int]byte{}
		maps.Copy(all, parent)
		maps.Copy(all, first)
		maps.Copy(all, second)
		f.answer = writer(t, all)
		if got := f.take(t, filesIn(dir, "b")); !bytes.Equal(got, memoryOf(all)) {
			t.Errorf("finished: %t: the next one differs", finished)
		}
	}
}

// A machine that goes on after it was saved is waited for as long as that may take:
// Firecracker does one after the other, also what nobody waits for.
func TestResumeWaitsForASnapshot(t *testing.T) {
	f := newFake(t, testPages*memimage.Page)
	if r := f.resume(); r.limit != 0 {
		t.Errorf("before it is saved: %s", r.limit)
	}
	f.answer = func(string, string, []byte) (int, string) { return fault400("no") }
	if err := f.Snapshot(t.Context(), filesIn(t.TempDir(), "a")); !errors.Is(err, errAPI) {
		t.Error(err)
	}
	if r := f.resume(); r.limit != snapshotTimeout {
		t.Errorf("after it was to be saved: %s", r.limit)
	}
	f.answer = loaded(1, 1)
	if err := f.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if r := f.resume(); r.limit != 0 {
		t.Errorf("once it runs again: %s", r.limit)
	}
}

// What Firecracker has not written wholly is no snapshot.
func TestFinishShort(t *testing.T) {
	f := newFake(t, testPages*memimage.Page)
	f.answer = writer(t, nil)
	to := filesIn(t.TempDir(), "short")
	if err := f.Snapshot(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(to.Memory, memimage.Page); err != nil {
		t.Fatal(err)
	}
	if err := f.FinishSnapshot(t.Context(), to); !errors.Is(err, errMemorySize) {
		t.Error(err)
	}
	for _, path := range []string{to.Memory, to.State} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", path)
		}
	}
}

func TestRelease(t *testing.T) {
	for _, c := range []struct {
		version string
		before  bool // 1.15
	}{{"1.14.2", true}, {"1.15.0", false}, {"2.0.0", false}, {"1.9.0-dev", true}, {"", true}, {"what", true}, {"1.16.1", false}} {
		if got := (release{c.version}).before(15); got != c.before {
			t.Errorf("%q: %t", c.version, got)
		}
	}
	for _, c := range []struct {
		version, arch string
		mib           int64
		can           bool
	}{
		{"1.14.0", "amd64", 3072, true},
		{"1.14.0", "amd64", 3073, false},
		{"1.15.0", "amd64", 8192, true},
		{"1.14.0", "arm64", 8192, true},
	} {
		if got := canDiff(release{c.version}, c.mib<<20, c.arch); got != c.can {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

func FuzzFault(f *testing.F) {
	f.Add([]byte(`{"fault_message":"no\nway"}`))
	f.Add([]byte(`{`))
	f.Add([]byte(`{"fault_message":" "}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if s := fault("400 Bad Request", body); s == "" || strings.ContainsAny(s, "\n\t") {
			t.Errorf("%q", s)
		}
	})
}
