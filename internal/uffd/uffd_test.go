package uffd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var page = os.Getpagesize()

// memory is mapped anew and registered with the userfaultfd that it returns.
// Nobody but the test's own goroutines touches it, and they wait for no lock
// while they do.
func memory(t *testing.T, pages int, want Feature) (*FD, []byte, uint64) {
	t.Helper()
	u, err := Open(want)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("no userfaultfd here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, pages*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(u.Close(), unix.Munmap(mem)); err != nil {
			t.Error(err)
		}
	})
	start := uint64(uintptr(unsafe.Pointer(&mem[0])))
	if err := u.Register(start, uint64(len(mem))); err != nil {
		t.Fatal(err)
	}
	return u, mem, start
}

// within runs f, which may be stuck in a fault, and waits for its end.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it is stuck")
	}
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestFaultIsReadAndFilled(t *testing.T) {
	u, mem, start := memory(t, 4, 0)
	for i, write := range []bool{false, true} {
		got := make(chan byte, 1)
		go func() {
			if write {
				mem[i*page+7] = 'w'
			}
			got <- mem[i*page+7]
		}()
		var events [4]Event
		n, err := u.Read(timeout(t), events[:])
		want := Event{Kind: Fault, Start: start + uint64(i*page), Write: write}
		if err != nil || n != 1 || events[0] != want {
			t.Fatalf("read %d events, %v: %+v, want %+v", n, err, events[0], want)
		}
		if n, err := u.Copy(events[0].Start, bytes.Repeat([]byte{'x'}, page)); n != page || err != nil {
			t.Fatalf("copied %d bytes, %v", n, err)
		}
		within(t, func() {
			c := <-got
			if want := map[bool]byte{false: 'x', true: 'w'}[write]; c != want || mem[i*page] != 'x' {
				t.Errorf("write %t: the thread read %q, want %q", write, c, want)
			}
		})
	}
	within(t, func() {
		if n, err := u.Zero(start+2*uint64(page), 2*uint64(page)); n != 2*page || err != nil {
			t.Errorf("zeroed %d bytes, %v", n, err)
		}
		if !bytes.Equal(mem[2*page:], make([]byte, 2*page)) {
			t.Error("they are not zeros")
		}
	})
}

// A copy over a page that is there stops before it, and says so when it is
// asked to go on.
func TestPagesThatAreThere(t *testing.T) {
	u, mem, start := memory(t, 4, 0)
	if n, err := u.Copy(start+2*uint64(page), bytes.Repeat([]byte{'a'}, page)); n != page || err != nil {
		t.Fatalf("copied %d bytes, %v", n, err)
	}
	data := bytes.Repeat([]byte{'b'}, 4*page)
	if n, err := u.Copy(start, data); n != 2*page || err != nil {
		t.Fatalf("copied %d bytes, %v; want two pages", n, err)
	}
	if n, err := u.Copy(start+2*uint64(page), data[2*page:]); n != 0 || !errors.Is(err, ErrExists) {
		t.Errorf("copied %d bytes, %v; want %v", n, err, ErrExists)
	}
	if n, err := u.Zero(start+2*uint64(page), uint64(page)); n != 0 || !errors.Is(err, ErrExists) {
		t.Errorf("zeroed %d bytes, %v; want %v", n, err, ErrExists)
	}
	if err := u.Wake(start, 4*uint64(page)); err != nil {
		t.Error(err)
	}
	within(t, func() {
		if mem[0] != 'b' || mem[2*page] != 'a' {
			t.Errorf("got %q and %q", mem[0], mem[2*page])
		}
	})
}

func TestRangesThatAreNotThere(t *testing.T) {
	u, mem, start := memory(t, 2, 0)
	other, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(other) }()
	if n, err := u.Copy(uint64(uintptr(unsafe.Pointer(&other[0]))), make([]byte, page)); n != 0 || !errors.Is(err, ErrUnmapped) {
		t.Errorf("not registered: copied %d bytes, %v", n, err)
	}
	if n, err := u.Copy(start+1, make([]byte, page)); n != 0 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("not aligned: copied %d bytes, %v", n, err)
	}
	if err := u.Register(start+1, uint64(page)); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "register") {
		t.Errorf("register what is not aligned: %v", err)
	}
	_ = mem
}

// Pages are emptied when the event about it has been read; until then nothing
// can be copied.
func TestRemoveAndUnmap(t *testing.T) {
	u, mem, start := memory(t, 4, FeatureEventRemove|FeatureEventUnmap)
	if n, err := u.Copy(start, bytes.Repeat([]byte{'x'}, 2*page)); n != 2*page || err != nil {
		t.Fatalf("copied %d bytes, %v", n, err)
	}
	done := make(chan error, 1)
	go func() { done <- unix.Madvise(mem[:2*page], unix.MADV_DONTNEED) }()
	for {
		_, err := u.Copy(start+3*uint64(page), make([]byte, page))
		if errors.Is(err, ErrChanging) {
			break
		}
		if err != nil && !errors.Is(err, ErrExists) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if t.Context().Err() != nil {
			t.Fatal("copies go on while an event is unread")
		}
	}
	var events [1]Event
	n, err := u.Read(timeout(t), events[:])
	want := Event{Kind: Remove, Start: start, End: start + 2*uint64(page)}
	if err != nil || n != 1 || events[0] != want {
		t.Fatalf("read %d events, %v: %+v, want %+v", n, err, events[0], want)
	}
	within(t, func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if n, err := u.Zero(start, uint64(page)); n != page || err != nil {
		t.Fatalf("zeroed %d bytes, %v", n, err)
	}
	within(t, func() {
		if mem[0] != 0 {
			t.Errorf("it still has %q", mem[0])
		}
	})

	go func() {
		_, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(start)+3*uintptr(page), uintptr(page), 0)
		if errno == 0 {
			done <- nil
		} else {
			done <- errno
		}
	}()
	n, err = u.Read(timeout(t), events[:])
	want = Event{Kind: Unmap, Start: start + 3*uint64(page), End: start + 4*uint64(page)}
	if err != nil || n != 1 || events[0] != want {
		t.Fatalf("read %d events, %v: %+v, want %+v", n, err, events[0], want)
	}
	within(t, func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReadEndsWithItsContext(t *testing.T) {
	u, _, _ := memory(t, 1, 0)
	var events [1]Event
	if n, err := u.TryRead(events[:]); n != 0 || err != nil {
		t.Errorf("nothing is there: %d events, %v", n, err)
	}
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { time.Sleep(10 * time.Millisecond); cancel(stop) }()
	for range 2 {
		if n, err := u.Read(ctx, events[:]); n != 0 || !errors.Is(err, stop) {
			t.Errorf("%d events, %v", n, err)
		}
	}
}

func TestFromFD(t *testing.T) {
	u, mem, start := memory(t, 1, 0)
	var second *FD
	err := u.Control(func(fd uintptr) {
		dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if second, err = FromFD(dup); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := second.Copy(start, bytes.Repeat([]byte{'x'}, page)); n != page || err != nil {
		t.Errorf("copied %d bytes, %v", n, err)
	}
	within(t, func() {
		if mem[0] != 'x' {
			t.Errorf("got %q", mem[0])
		}
	})
	if err := second.Close(); err != nil {
		t.Error(err)
	}

	file, err := os.Create(t.TempDir() + "/anon_inode:[userfaultfd]")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FromFD(fd); !errors.Is(err, ErrNotUserfaultfd) {
		t.Errorf("a file: %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the file is still open: %v", err)
	}
	if _, err := FromFD(1 << 20); err == nil {
		t.Error("a number that is no descriptor was taken")
	}
}

func TestKinds(t *testing.T) {
	for k, want := range map[Kind]string{Fault: "fault", Fork: "fork", Remap: "remap", Remove: "remove", Unmap: "unmap", 9: "event 0x9"} {
		if got := k.String(); got != want {
			t.Errorf("%d: %q, want %q", k, got, want)
		}
	}
	// The descriptor of a fork's child is closed.
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(p[1]) }()
	b := make([]byte, messageSize)
	b[0] = byte(Fork)
	*(*uint32)(unsafe.Pointer(&b[8])) = uint32(p[0])
	e := parse(b)
	e.closeChild()
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) || e.child != 0 {
		t.Errorf("the child's descriptor is still open: %v", err)
	}
}
