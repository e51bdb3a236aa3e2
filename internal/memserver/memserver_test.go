package memserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/uffd"
)

const soon = 30 * time.Second // for what takes milliseconds on an idle machine

// makeMemory writes a memory file: of three pages one is a hole, of seven one
// is zeros that are no hole, all others are different.
func makeMemory(t testing.TB, path string, pages int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, pageSize)
	for p := range pages {
		if p%3 == 0 {
			continue
		}
		clear(b)
		for i := 0; p%7 != 0 && i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], uint64(p)<<20|uint64(i))
		}
		if _, err := f.WriteAt(b, int64(p*pageSize)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(pages * pageSize)); err != nil {
		t.Fatal(err)
	}
}

// service is a server that a test has started.
type service struct {
	*Server
	t      testing.TB
	o      Options
	stop   context.CancelFunc
	ended  chan struct{}
	err    error
	mu     sync.Mutex
	logged bytes.Buffer
}

func options(t testing.TB, pages int) Options {
	t.Helper()
	if fd, err := uffd.Open(0); err != nil {
		t.Skipf("no userfaultfd here: %v", err)
	} else {
		_ = fd.Close()
	}
	dir := t.TempDir()
	o := Options{
		Snapshot: "snap", Socket: filepath.Join(dir, "s"), Memory: filepath.Join(dir, "memory"),
		WorkingSet: filepath.Join(dir, "set"), Prefetch: true,
	}
	makeMemory(t, o.Memory, pages)
	return o
}

func serve(t testing.TB, o Options) *service {
	t.Helper()
	s := &service{t: t, o: o, ended: make(chan struct{})}
	o.Log = func(line string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintln(&s.logged, line)
	}
	var err error
	if s.Server, err = Open(o); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		defer close(s.ended)
		s.err = s.Serve(ctx)
	}()
	t.Cleanup(func() {
		stop()
		s.wait()
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.log())
		}
	})
	return s
}

func (s *service) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logged.String()
}

// wait returns when the server has ended.
func (s *service) wait() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(soon):
		s.t.Fatal("the server does not end")
	}
	if s.err != nil {
		s.t.Error(s.err)
	}
	if _, err := os.Lstat(s.o.Socket); err == nil {
		s.t.Error("its socket is left")
	}
}

// until waits for something to be true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (s *service) settings() vmmSettings { return vmmSettings{Socket: s.o.Socket, Memory: s.o.Memory} }

func (s *service) link(vm string) *Link {
	s.t.Helper()
	l, err := OpenLink(s.t.Context(), s.o.Socket, vm)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = l.Close() })
	return l
}

// endOf waits for a link's end, and returns why, and how long it took.
func endOf(t *testing.T, l *Link) (time.Duration, error) {
	t.Helper()
	start := time.Now()
	select {
	case <-l.Done():
	case <-time.After(soon):
		t.Fatal("the link does not end")
	}
	return time.Since(start), l.Err()
}

func TestEveryPageInAnyOrder(t *testing.T) {
	const pages = 2000
	for name, set := range map[string]func(*Options){
		"recording":           func(*Options) {},
		"without prefetch":    func(o *Options) { o.Prefetch = false },
		"single pages":        func(o *Options) { o.Prefetch, o.FaultAround = false, pageSize },
		"a megabyte at once":  func(o *Options) { o.Prefetch, o.FaultAround = false, MaxFaultAround },
		"everything is ahead": func(o *Options) { keepSet(t, *o, pages, func(int) bool { return true }) },
		"some is ahead":       func(o *Options) { keepSet(t, *o, pages, func(p int) bool { return p%5 == 1 }) },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, pages)
			set(&o)
			s := serve(t, o)
			var vms []*fakeVMM
			for range 3 {
				v := startVMM(t, s.settings())
				v.start(order{Op: "touch", Pages: shuffled(pagesFrom(0, pages)), Threads: 3})
				vms = append(vms, v)
			}
			for _, v := range vms {
				if _, err := v.end(); err != nil {
					t.Error(err)
				}
			}
			for _, v := range s.Stats().VMs {
				if v.Faults == 0 || v.Faults+v.Around+v.Pushed < pages || v.Zero < pages/3 || v.P50Micros <= 0 || v.P99Micros < v.P50Micros {
					t.Errorf("%+v", v)
				}
			}
			for _, v := range vms {
				v.quit()
			}
			s.wait() // the last one has left
			if st := s.Stats(); len(st.VMs) != 0 || len(st.Ended) != 3 || st.Ended[0].Reason != "" {
				t.Errorf("%+v", st)
			}
		})
	}
}

// keepSet stores a working set, as one that was recorded before.
func keepSet(t *testing.T, o Options, pages int, has func(int) bool) {
	t.Helper()
	set := newBitmap(pages)
	for p := range pages {
		if has(p) {
			set.set(p)
		}
	}
	if err := saveSet(o.WorkingSet, set, int64(pageSize), int64(pages*pageSize)); err != nil {
		t.Fatal(err)
	}
}

// What a VM has given back is zeros, whatever is pushed or asked for meanwhile.
func TestRemovedPagesAreZeros(t *testing.T) {
	const pages = 1000
	o := options(t, pages)
	keepSet(t, o, pages, func(int) bool { return true })
	s := serve(t, o)
	v := startVMM(t, s.settings())
	v.do(order{Op: "churn", Micros: int(300 * time.Millisecond / time.Microsecond)})
	v.do(order{Op: "drop", Pages: pagesFrom(10, 50)})
	v.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, pages)), Threads: 4})
	st := s.Stats().VMs[0]
	if st.Removed < 50 {
		t.Errorf("%+v", st)
	}
}

func TestWorkingSetIsRecordedAndPushed(t *testing.T) {
	const pages = 4000
	o := options(t, pages)
	o.Keep = true
	s := serve(t, o)
	start := shuffled(append(pagesFrom(100, 300), pagesFrom(3000, 200)...))

	l := s.link("first")
	v := startVMM(t, s.settings())
	if err := l.Attach(v.pid()); err != nil {
		t.Fatal(err)
	}
	v.do(order{Op: "touch", Pages: start})
	if st := s.Stats(); !st.Recording || st.WorkingSet != 0 || st.VMs[0].Faults != 500 || st.VMs[0].Around != 0 || st.VMs[0].VM != "first" {
		t.Errorf("while it starts: %+v", st)
	}
	if err := l.Ready(); err != nil {
		t.Fatal(err)
	}
	until(t, "it is kept", func() bool { return s.Stats().WorkingSet == 500 })
	first := pagesFrom(2000, 20) // what it needs to answer for the first time
	v.do(order{Op: "touch", Pages: first})
	until(t, "the recording ends", func() bool { return !s.Stats().Recording })
	v.do(order{Op: "touch", Pages: shuffled(pagesFrom(1000, 300))})
	if st := s.Stats(); st.WorkingSet != 520 || st.VMs[0].Around == 0 {
		t.Errorf("when it has been ready for a moment: %+v", st)
	}
	v.quit()
	start = append(start, first...)

	// The next one finds it there; also on a new server.
	again := func(s *service) {
		t.Helper()
		v := startVMM(t, s.settings())
		until(t, "all is pushed", func() bool { st := s.Stats().VMs; return len(st) == 1 && st[0].PushMicros > 0 })
		v.do(order{Op: "touch", Pages: start})
		st := s.Stats().VMs[0]
		if st.Pushed+st.Held != 520 || st.Faults != st.Held || st.HeldUsed != st.Held || st.Held > 50 {
			t.Errorf("%+v", st)
		}
		if st.Held > 0 && *st.PushedUsed != st.Pushed {
			t.Errorf("all of %d pages were used, estimated are %d", st.Pushed, *st.PushedUsed)
		}
		v.quit()
	}
	again(s)
	s.stop()
	s.wait()
	again(serve(t, o))
}

// A VM that ends before it is ready leaves no working set; the next one makes
// it. What a VM needs to end is not in it.
func TestRecordingOfAVMThatEndsIsDropped(t *testing.T) {
	o := options(t, 100)
	o.Keep = true
	s := serve(t, o)
	for _, ready := range []bool{false, true} {
		l := s.link("vm")
		v := startVMM(t, s.settings())
		v.do(order{Op: "touch", Pages: pagesFrom(0, 10)})
		if err := l.Attach(v.pid()); err != nil {
			t.Fatal(err)
		}
		if ready {
			if err := l.Ready(); err != nil {
				t.Fatal(err)
			}
			until(t, "there is a set", func() bool { return s.Stats().WorkingSet == 10 })
			v.do(order{Op: "touch", Pages: pagesFrom(50, 10)})
		}
		v.kill()
		until(t, "it has left", func() bool { st := s.Stats(); return len(st.VMs) == 0 && !st.Recording })
		if _, err := os.Stat(o.WorkingSet); (err == nil) != ready {
			t.Errorf("ready %t: %v", ready, err)
		}
	}
	if n := s.Stats().WorkingSet; n != 10 {
		t.Errorf("the set has %d pages; when the VM was ready there were 10", n)
	}
}

// ownGuest is a guest whose memory is this process's own, with a working set that is
// all of its pages.
func ownGuest(t *testing.T, o Options, pages int) (*guest, bitmap) {
	t.Helper()
	ram, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(ram) })
	r := region{addr: uint64(uintptr(unsafe.Pointer(&ram[0]))), size: uint64(len(ram))}
	fd, err := uffd.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fd.Close() })
	mem, err := openMemory(o.Memory)
	if err = errors.Join(err, fd.Register(r.addr, r.size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.close() })
	set := newBitmap(pages)
	for p := range pages {
		set.set(p)
	}
	return newGuest(fd, layout{page: uint64(pageSize), regions: []region{r}}, mem, DefaultFaultAround, set), set
}

// The push goes on from where the VM is, and leaves nothing out; of a large set
// no more is held back than shows how much of it is used.
func TestPushFollowsTheVM(t *testing.T) {
	const pages, at = 4000, 3000
	g, set := ownGuest(t, options(t, pages), pages)
	step := func() {
		t.Helper()
		if err := g.step(); err != nil {
			t.Fatal(err)
		}
	}
	step()
	g.faults = []fault{{page: at, r: g.layout.regions[0], at: time.Now()}}
	step()
	if before, there := g.present.next(at-500), g.present.has(at); before != at || !there || g.present.count() < 30 {
		t.Errorf("after a fault at %d it is there: %t; the first page from %d on that is there is %d", at, there, at-500, before)
	}
	for g.push != nil {
		step()
	}
	if n := g.present.count(); n+g.held.count() != pages || g.held.count() > 3*maxSample {
		t.Errorf("of %d pages %d are there, and %d held back", pages, n, g.held.count())
	}
	if set.count() != pages {
		t.Errorf("the set that the server keeps has lost pages: it has %d", set.count())
	}
}

// A chunk that could not be delivered is still to be: here the file has been changed
// meanwhile, and is as it was again.
func TestPushKeepsWhatFailed(t *testing.T) {
	const pages = 300
	o := options(t, pages)
	g, _ := ownGuest(t, o, pages)
	if err := g.pushSome(); err != nil {
		t.Fatal(err)
	}
	pushed, left := g.present.count(), g.push.count()+g.held.count()
	if err := os.Chtimes(o.Memory, time.Time{}, g.mem.mtime.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	err := g.pushSome()
	if n := g.push.count() + g.held.count(); !errors.Is(err, ErrMemory) || g.present.count() != pushed || n != left {
		t.Errorf("a push from a file that was changed: %v; %d pages are there after %d; %d are left or held back after %d", err, g.present.count(), pushed, n, left)
	}
	if err := os.Chtimes(o.Memory, time.Time{}, g.mem.mtime); err != nil {
		t.Fatal(err)
	}
	for g.push != nil {
		if err := g.pushSome(); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.present.count() + g.held.count(); n != pages {
		t.Errorf("of %d pages %d are there or held back", pages, n)
	}
}

// Who pushes is preferred only while it does.
func TestHurry(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := niceOf(unix.Gettid())
	if err != nil {
		t.Fatal(err)
	}
	calm := hurry()
	during, err := niceOf(unix.Gettid())
	calm()
	after, errAfter := niceOf(unix.Gettid())
	if err = errors.Join(err, errAfter); err != nil || after != before || (during != before && during != max(before-pushNicer, -20)) {
		t.Errorf("a nice value of %d before, %d meanwhile, %d after, %v", before, during, after, err)
	}
	t.Logf("a nice value of %d instead of %d", during, before)
}

func TestBrokenWorkingSetIsRecordedAgain(t *testing.T) {
	o := options(t, 100)
	if err := os.WriteFile(o.WorkingSet, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, o)
	if !strings.Contains(s.log(), "recorded again") {
		t.Errorf("log: %s", s.log())
	}
	l := s.link("vm")
	v := startVMM(t, s.settings())
	v.do(order{Op: "touch", Pages: pagesFrom(50, 3)})
	if err := errors.Join(l.Attach(v.pid()), l.Ready()); err != nil {
		t.Fatal(err)
	}
	until(t, "it is there", func() bool {
		set, err := loadSet(o.WorkingSet, int64(pageSize), int64(100*pageSize))
		return err == nil && set.count() == 3 && set.has(52)
	})
}

// Memory on huge pages: each is delivered whole, also those of zeros, and only
// those of the working set that have a part in it.
func TestHugePages(t *testing.T) {
	const huge, each = 8, hugePage / 4096
	free, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	if n, _ := strconv.Atoi(strings.TrimSpace(string(free))); err != nil || n < 2*(huge+1) {
		t.Skipf("it needs %d free huge pages of 2 MiB (sysctl vm.nr_hugepages), there are %d", 2*(huge+1), n)
	}
	o := options(t, huge*each)
	if err := os.Truncate(o.Memory, 5*hugePage); err != nil { // the rest is a hole
		t.Fatal(err)
	}
	if err := os.Truncate(o.Memory, huge*hugePage); err != nil {
		t.Fatal(err)
	}
	o.Keep, o.HugePages = true, true
	s := serve(t, o)
	settings := s.settings()
	settings.Huge = true
	l := s.link("first")
	v := startVMM(t, settings)
	v.do(order{Op: "touch", Pages: []int{6, 1, 3}})
	if err := errors.Join(l.Attach(v.pid()), l.Ready()); err != nil {
		t.Fatal(err)
	}
	until(t, "it is recorded", func() bool { return s.Stats().WorkingSet == 3*each })
	v.do(order{Op: "drop", Pages: []int{3}})
	v.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, huge)), Threads: 2})
	w := startVMM(t, settings)
	until(t, "the set is pushed", func() bool { v := s.Stats().VMs; return len(v) == 2 && v[1].PushMicros > 0 })
	w.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, huge))})
	if st := s.Stats().VMs[1]; st.PageSize != hugePage || st.Pushed+st.Held != 3 || st.Faults != huge-st.Pushed || st.Zero != 0 {
		t.Errorf("%+v", st)
	}
}
