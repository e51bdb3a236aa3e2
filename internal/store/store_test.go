package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vm"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		helperMain(os.Args[2:])
		return
	}
	goleak.VerifyTestMain(m)
}

func newStore(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(paths.Layout{Data: filepath.Join(dir, "data"), Runtime: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store, name string) *VM {
	t.Helper()
	v, err := s.Create(name, vm.Spec{Image: "img"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func list(t *testing.T, s *Store) []Entry {
	t.Helper()
	es, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func TestLifeOfARecord(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "web")
	if err := v.Move(vm.StatusStarting, ""); err != nil {
		t.Fatal(err)
	}
	if err := v.Move(vm.StatusCreated, ""); err == nil || v.Record().Status != vm.StatusStarting {
		t.Errorf("a change that a VM cannot make: %v, %s", err, v.Record().Status)
	}
	e, err := s.Find("web")
	if err != nil || !e.Alive || e.Record.Status != vm.StatusStarting || e.Record.Supervisor.PID != os.Getpid() {
		t.Errorf("%+v, %v", e, err)
	}
	if err := s.Remove(v.Record().ID); !errors.Is(err, vm.ErrRunning) {
		t.Errorf("remove while it lives: %v", err)
	}
	if err := v.Move(vm.StatusFailed, "no reason"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	if e, err = s.Find("web"); err != nil || e.Alive || e.Record.Reason != "no reason" {
		t.Errorf("after its end: %+v, %v", e, err)
	}
	for range 2 { // the second time it is gone already
		if err := s.Remove(v.Record().ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Find("web"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	if left, _ := os.ReadDir(s.layout.VMs()); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestFilesAreThePersonsOwn(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "")
	for path, want := range map[string]os.FileMode{
		s.layout.Data: 0o700, s.layout.VMs(): 0o700, string(v.Dir()): 0o700,
		v.Dir().Record(): 0o600, v.Dir().Lock(): 0o600, s.layout.Lock(): 0o600,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
}

func TestNames(t *testing.T) {
	s := newStore(t)
	first := create(t, s, "web")
	_, err := s.Create("web", vm.Spec{})
	if !errors.Is(err, vm.ErrNameTaken) || !strings.Contains(err.Error(), "fcvm rm -f web") || !strings.Contains(err.Error(), first.Record().ID) {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := s.Create("-x", vm.Spec{}); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("a name that is none: %v", err)
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	create(t, s, "web")
	seen := map[string]bool{}
	for range 20 {
		v := create(t, s, "")
		if seen[v.Record().Name] || vm.CheckName(v.Record().Name) != nil {
			t.Errorf("random name %q", v.Record().Name)
		}
		seen[v.Record().Name] = true
	}
	all := map[string]vm.Record{}
	for range 100_000 { // all that there are
		all[vm.NewName()] = vm.Record{}
	}
	if n := freeName(all); vm.CheckName(n) != nil {
		t.Errorf("name %q when all are taken", n)
	} else if _, taken := all[n]; taken {
		t.Errorf("name %q is taken", n)
	}
}

func TestFind(t *testing.T) {
	s := newStore(t)
	write := func(id, name string) {
		t.Helper()
		dir := s.layout.VM(id)
		if err := os.Mkdir(string(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		r := vm.Record{Schema: vm.RecordSchema, ID: id, Name: name, Status: vm.StatusExited, Created: time.Now()}
		if err := writeJSON(dir.Record(), &r); err != nil {
			t.Fatal(err)
		}
	}
	write("aaaaaaaaaaaa", "bbbbbbbbbbbb") // the name is the id of another
	write("aaaa00000000", "aaa")          // the name is a prefix of ids
	write("bbbbbbbbbbbb", "web")
	for ref, want := range map[string]string{
		"web": "bbbbbbbbbbbb", "bbbbbbbbbbbb": "bbbbbbbbbbbb", "bbb": "bbbbbbbbbbbb",
		"aaa": "aaaa00000000", "aaaa0": "aaaa00000000", "aaaaa": "aaaaaaaaaaaa",
	} {
		if e, err := s.Find(ref); err != nil || e.Record.ID != want {
			t.Errorf("%s: got %s, %v; want %s", ref, e.Record.ID, err, want)
		}
	}
	if _, err := s.Find("aaaa"); !errors.Is(err, vm.ErrAmbiguous) || !strings.Contains(err.Error(), "aaaa00000000 (aaa)") {
		t.Errorf("ambiguous: %v", err)
	}
	for _, ref := range []string{"", "we", "ccc", "../vms", "AAAA"} {
		if _, err := s.Find(ref); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

// A record that is none is listed as such, can be removed, and disturbs nobody.
func TestBrokenRecords(t *testing.T) {
	for name, tc := range map[string]struct {
		record string
		want   error
	}{
		"empty":        {"", ErrBroken},
		"garbage":      {"\x00\xff{", ErrBroken},
		"truncated":    {`{"schema":1,"id":"ID","name":"we`, ErrBroken},
		"another type": {`{"schema":1,"id":"ID","name":7}`, ErrBroken},
		"no schema":    {`{"id":"ID"}`, ErrBroken},
		"another's":    {`{"schema":1,"id":"000000000000"}`, ErrBroken},
		"newer":        {`{"schema":99,"id":"ID","name":{"new":"form"}}`, ErrNewerSchema},
		"endless":      {strings.Repeat(" ", maxRecord+1), ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			id := vm.NewID()
			text := strings.ReplaceAll(tc.record, "ID", id)
			if err := os.Mkdir(string(s.layout.VM(id)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.layout.VM(id).Record(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			good := create(t, s, "good")
			es := list(t, s)
			if len(es) != 2 || !errors.Is(es[0].Err, tc.want) || es[0].Record.ID != id || es[1].Record.ID != good.id || es[1].Err != nil {
				t.Fatalf("%+v", es)
			}
			if e, err := s.Find(id[:6]); err != nil || e.Err == nil {
				t.Errorf("find: %+v, %v", e, err)
			}
			if b, err := os.ReadFile(s.layout.VM(id).Record()); err != nil || string(b) != text {
				t.Error("the record was overwritten")
			}
			if err := s.Remove(id); err != nil {
				t.Error(err)
			}
			if es := list(t, s); len(es) != 1 {
				t.Errorf("after its removal: %+v", es)
			}
		})
	}
}

// What else lies among the VMs is left alone.
func TestStrangersAmongVMs(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"abcdefabcdef", "README"} { // files, one with the name of an id
		if err := os.WriteFile(filepath.Join(s.layout.VMs(), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.layout.VMs(), "backup"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.layout.VM("0123456789ab").Record(), 0o700); err != nil { // a record that is a directory
		t.Fatal(err)
	}
	v := create(t, s, "")
	if es := list(t, s); len(es) != 2 || es[0].Err == nil || es[1].Record.ID != v.id {
		t.Errorf("%+v", es)
	}
	for _, name := range []string{"abcdefabcdef", "README", "backup"} {
		if _, err := os.Stat(filepath.Join(s.layout.VMs(), name)); err != nil {
			t.Error(err)
		}
	}
}

// asOrdinaryUser runs f with the file permissions of nobody, if this is root.
func asOrdinaryUser(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never let go: the thread ends with the goroutine
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func openPath(t *testing.T, dir string) { // t.TempDir's parents are root's own
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDataDirectoryThatCannotBeUsed(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "web")
	if err := v.Move(vm.StatusStarting, ""); err != nil {
		t.Fatal(err)
	}
	_ = v.Close() // dead, and nobody can write that down
	openPath(t, string(v.Dir()))
	for _, f := range []string{v.Dir().Record(), v.Dir().Lock(), s.layout.Lock()} {
		if err := os.Chmod(f, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{string(v.Dir()), s.layout.VMs(), s.layout.Data} {
		if err := os.Chmod(d, 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(d, 0o755) })
	}
	asOrdinaryUser(t, func() {
		es, err := s.List()
		if err != nil || len(es) != 1 || es[0].Alive || es[0].Record.Status != vm.StatusFailed {
			t.Errorf("a read-only directory is listed as %+v, %v", es, err)
		}
		if _, err := s.Create("x", vm.Spec{}); err == nil || !strings.Contains(err.Error(), s.layout.Data) || !errors.Is(err, os.ErrPermission) {
			t.Errorf("create: %v", err)
		}
		if err := s.Remove(v.id); !errors.Is(err, os.ErrPermission) {
			t.Errorf("remove: %v", err)
		}
		below := filepath.Join(s.layout.Data, "deeper")
		if _, err := Open(paths.Layout{Data: below}); err == nil || !strings.Contains(err.Error(), below) {
			t.Errorf("open: %v", err)
		}
	})
	if err := os.Chmod(s.layout.VMs(), 0o000); err != nil {
		t.Fatal(err)
	}
	asOrdinaryUser(t, func() {
		if es, err := s.List(); !errors.Is(err, os.ErrPermission) {
			t.Errorf("an unreadable directory is listed as %+v, %v", es, err)
		}
	})
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "web")
	before, _ := os.ReadFile(v.Dir().Record())
	refused := errors.New("refused")
	if err := v.Update(func(r *vm.Record) error { r.Name = "other"; return refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	if err := os.RemoveAll(string(v.Dir())); err != nil {
		t.Fatal(err)
	}
	if err := v.Update(func(r *vm.Record) error { r.Name = "other"; return nil }); err == nil {
		t.Error("written to a directory that is gone")
	}
	if v.Record().Name != "web" || !bytes.Contains(before, []byte(`"name": "web"`)) {
		t.Errorf("%+v", v.Record())
	}
}

// Looking at VMs disturbs nobody who creates, changes or removes some.
func TestManyAtOnce(t *testing.T) {
	s := newStore(t)
	stop := make(chan struct{})
	var lookers, makers sync.WaitGroup
	for range 2 {
		lookers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.List(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 4 {
		makers.Go(func() {
			for j := range 15 {
				if err := oneLife(s, fmt.Sprintf("vm-%d-%d", i, j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	makers.Wait()
	close(stop)
	lookers.Wait()
	if es := list(t, s); len(es) != 0 {
		t.Errorf("%+v is left", es)
	}
}

func oneLife(s *Store, name string) error {
	v, err := s.Create(name, vm.Spec{})
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	all.Go(func() { _ = v.Dir() })
	_ = v.Update(func(*vm.Record) error { return errors.New("no") })
	all.Wait()
	for _, to := range []vm.Status{vm.StatusStarting, vm.StatusRunning, vm.StatusExited} {
		if err := v.Move(to, ""); err != nil {
			return err
		}
	}
	e, err := s.Find(name)
	if err != nil {
		return err
	}
	if !e.Alive || e.Record.Status != vm.StatusExited {
		return fmt.Errorf("%s is %s, alive %v", name, e.Record.Status, e.Alive)
	}
	if err := v.Close(); err != nil {
		return err
	}
	return s.Remove(v.id)
}
