package memserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/uffd"
)

const (
	pushChunk = 64 << 10         // bytes that are pushed between two looks for faults
	sampleOf  = 64               // one in so many pages of a working set is held back,
	maxSample = 16               // of a large one about so many: each costs a fault
	pushNicer = 10               // by which the nice value of who pushes is lower,
	hurryTime = 10 * time.Second // for so long at most
	maxDrain  = 64               // reads until the faults that they brought are served
	// memoryWait is how long the host may be out of memory before a VM whose page
	// cannot be had is ended.
	memoryWait = time.Second
)

// guest is one VM and what it has of its memory. All but the counters belongs
// to the goroutine that runs serve.
type guest struct {
	fd     *uffd.FD
	layout layout
	mem    *memory
	around int       // pages that come with a fault, a power of two
	rec    *recorder // nil: not recording
	push   bitmap    // pages that are still to be delivered ahead; nil: none, or not any more
	pushAt int       // where in it to go on
	seed   uint64    // chooses the sample,
	oneIn  uint64    // which is one page in so many of the working set

	present bitmap // delivered, and not removed since
	removed bitmap // zeros from now on, whatever the file has
	held    bitmap // the sample that is held back, as long as nobody asks
	faults  []fault
	events  [32]uffd.Event
	pieces  []piece // what is about to be delivered,
	buf     []byte  // the pages of those that were read,
	read    int     // which take so much of it
	zeros   []byte  // of one page
	short   time.Time
	pushing time.Time

	mu    sync.Mutex // guards what follows
	stats VMStats
	took  histogram
}

type fault struct {
	page int
	r    region
	at   time.Time
}

// newGuest prepares to serve a VM. set, in pages of the system's size, may be
// nil.
func newGuest(fd *uffd.FD, l layout, mem *memory, around int, set bitmap) *guest {
	pages := int(mem.size / int64(l.page))
	g := &guest{
		fd: fd, layout: l, mem: mem, around: max(1, around/int(l.page)),
		seed:    rand.Uint64(), //nolint:gosec // which pages are a sample is no secret
		present: newBitmap(pages), removed: newBitmap(pages), held: newBitmap(pages),
		buf: make([]byte, max(around, pushChunk, int(l.page))), zeros: make([]byte, l.page),
	}
	if set != nil {
		g.push = slices.Clone(set.coarse(g.scale(), pages))
		g.oneIn = max(sampleOf, uint64(g.push.count())/maxSample)
	}
	g.stats = VMStats{Connected: time.Now(), PageSize: int(l.page)}
	return g
}

// scale is how many of the system's pages one of the VM's has.
func (g *guest) scale() int { return int(int64(g.layout.page) / g.mem.page) }

// serve answers faults until ctx ends, with its cause, or the VM is gone (nil),
// or a page cannot be had.
func (g *guest) serve(ctx context.Context) error {
	calm := func() {}
	defer func() { calm() }()
	if g.push != nil {
		calm = hurry()
	}
	wait := time.Duration(0)
	began := time.Now()
	for {
		if g.push == nil || time.Since(began) > hurryTime {
			calm()
			calm = func() {}
		}
		if err := g.collect(ctx); err != nil {
			return err
		}
		err := g.step()
		switch {
		case err == nil:
			g.short, wait = time.Time{}, 0
		case errors.Is(err, uffd.ErrChanging):
			// An event is unread; or its sender, which is in the kernel, has not
			// gone on yet.
			wait = min(wait+20*time.Microsecond, time.Millisecond)
		case errors.Is(err, syscall.ENOMEM):
			if g.short.IsZero() {
				g.short = time.Now()
			}
			if time.Since(g.short) > memoryWait {
				return fmt.Errorf("there is no memory for a page, on the host or below the VM's limit: %w", err)
			}
			wait = 10 * time.Millisecond
		case errors.Is(err, uffd.ErrGone):
			return nil
		default:
			return err
		}
		if wait > 0 {
			time.Sleep(wait)
		}
	}
}

// hurry has the scheduler prefer this goroutine's thread until calm is called, where
// that is allowed: where CPUs are few, the VM runs in the midst of the push, and each
// page that it is ahead of costs a fault. Faults are served as ever. How long a VM
// makes those last is up to the VM, so that this is bounded (hurryTime).
func hurry() (calm func()) {
	runtime.LockOSThread()
	thread := unix.Gettid()
	nice, err := niceOf(thread)
	if err != nil || unix.Setpriority(unix.PRIO_PROCESS, thread, nice-pushNicer) != nil {
		runtime.UnlockOSThread()
		return func() {}
	}
	return func() {
		_ = unix.Setpriority(unix.PRIO_PROCESS, thread, nice)
		runtime.UnlockOSThread()
	}
}

// niceOf is a thread's nice value: the system call returns 20 less that
// (getpriority(2)).
func niceOf(thread int) (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, thread)
	return 20 - n, err
}

// collect reads what the kernel has to say. It waits when there is nothing
// else to do. All events that are there are read before any fault is served: a
// fault may come before the event that its page has been removed.
func (g *guest) collect(ctx context.Context) error {
	for i := range maxDrain {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var n int
		var err error
		if i == 0 && len(g.faults) == 0 && g.push == nil {
			n, err = g.fd.Read(ctx, g.events[:])
		} else {
			n, err = g.fd.TryRead(g.events[:])
		}
		if err != nil || n == 0 {
			return err
		}
		now := time.Now()
		for _, e := range g.events[:n] {
			if err := g.note(e, now); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *guest) note(e uffd.Event, now time.Time) error {
	switch e.Kind {
	case uffd.Fault:
		page, r, ok := g.layout.at(e.Start)
		if !ok {
			return fmt.Errorf("%w: a fault at %#x, outside of the memory that the VMM has announced", errHandshake, e.Start)
		}
		// It may have been emptied since it was delivered.
		g.present.clear(page)
		if !slices.ContainsFunc(g.faults, func(f fault) bool { return f.page == page }) {
			g.faults = append(g.faults, fault{page, r, now})
		}
	case uffd.Remove, uffd.Unmap:
		g.remove(e.Start, e.End)
	default:
		return fmt.Errorf("%w: the VMM's memory has had a %s, which cannot be followed", errHandshake, e.Kind)
	}
	return nil
}

// remove notes that the VM has given pages back: they are zeros from now on.
func (g *guest) remove(start, end uint64) {
	n := 0
	for _, r := range g.layout.regions {
		from, to := max(start, r.addr), min(end, r.end())
		for ; from < to; from += g.layout.page {
			page := int((r.offset + from - r.addr) / g.layout.page)
			g.removed.set(page)
			g.present.clear(page)
			n++
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stats.Removed += uint64(n)
}

// step serves the faults that were read and, when there are none left, pushes
// a chunk.
func (g *guest) step() error {
	for len(g.faults) > 0 {
		f := g.faults[0]
		if err := g.demand(f); err != nil {
			return fmt.Errorf("serve a fault at %#x: %w", g.layout.address(f.r, f.page), err)
		}
		g.faults = append(g.faults[:0], g.faults[1:]...)
		took := time.Since(f.at)
		g.mu.Lock()
		g.stats.Faults++
		g.took.add(took)
		g.mu.Unlock()
	}
	if g.push == nil {
		return nil
	}
	err := g.pushSome()
	if err != nil && !errors.Is(err, uffd.ErrChanging) && !errors.Is(err, uffd.ErrGone) {
		g.push = nil // it was a hint; who needs the page will hear of it
		return nil
	}
	return err
}

// demand delivers a page that the VM waits for, and its neighbours.
func (g *guest) demand(f fault) error {
	if g.rec != nil && !g.removed.has(f.page) && !g.rec.add(f.page*g.scale(), g.scale()) {
		g.rec = nil
	}
	if g.present.has(f.page) { // it came with a neighbour since
		return nil
	}
	if g.held.has(f.page) {
		g.held.clear(f.page)
		g.mu.Lock()
		g.stats.HeldUsed++
		g.mu.Unlock()
	}
	first, end := f.page, f.page+1
	if g.rec == nil { // while recording, each page has to be asked for
		low, high := g.layout.span(f.r)
		first = max(low, f.page&^(g.around-1))
		end = min(high, f.page&^(g.around-1)+g.around)
	}
	if g.push != nil && g.push.has(f.page) {
		g.pushAt = end // the VM is here: what it asks for next is likelier to be near
	}
	defer g.discard()
	err := g.gather(f.r, first, end)
	if err != nil {
		return err
	}
	n, err := g.fill()
	if n > 0 {
		g.mu.Lock()
		g.stats.Around += uint64(n - 1)
		g.mu.Unlock()
	}
	if err == nil && !g.present.has(f.page) { // unmapped since: it faults again, and fails by itself
		err = g.fd.Wake(g.layout.address(f.r, f.page), g.layout.page)
	}
	return err
}

// pushSome delivers the next chunk of the working set.
func (g *guest) pushSome() error {
	if g.pushing.IsZero() {
		g.pushing = time.Now()
	}
	defer g.discard()
	last := false
	for budget := max(1, pushChunk/int(g.layout.page)); budget > 0 && !last; {
		n, err := g.gatherPush(budget)
		if err != nil {
			return err
		}
		budget -= n
		last = n == 0
	}
	n, err := g.fill()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stats.Pushed += uint64(n)
	if err != nil {
		for _, p := range g.pieces {
			for i := range p.n {
				g.push.set(p.first + i)
			}
		}
		return err
	}
	if last {
		g.push = nil
		g.stats.PushMicros = max(1, time.Since(g.pushing).Microseconds())
	}
	return nil
}

// gatherPush takes the next run of the working set, of at most so many pages, and
// returns how many it has, 0 when nothing is left: on from where the VM has last asked
// for a page of it, and from the start again what is left then.
func (g *guest) gatherPush(most int) (int, error) {
	for {
		p := g.push.next(g.pushAt)
		if p < 0 {
			p = g.push.next(0)
		}
		if p < 0 {
			return 0, nil
		}
		g.push.clear(p)
		g.pushAt = p + 1
		r, ok := g.layout.of(p)
		if !ok || g.done(p) || g.sample(p) {
			continue
		}
		_, high := g.layout.span(r)
		end := p + 1
		for end < high && end-p < most && g.push.has(end) && !g.done(end) && !g.sampled(end) {
			g.push.clear(end)
			end++
		}
		g.pushAt = end
		return end - p, g.gather(r, p, end)
	}
}

// done reports whether nothing is to be pushed for a page.
func (g *guest) done(page int) bool { return g.present.has(page) || g.removed.has(page) }

// sampled reports whether a page is of the sample.
func (g *guest) sampled(page int) bool {
	h := (uint64(page) + g.seed) * 0x9E3779B97F4A7C15 // Fibonacci hashing; the high bits are the good ones
	return (h>>32)%g.oneIn == 0
}

// sample holds a page back if it is of the sample.
func (g *guest) sample(page int) bool {
	if !g.sampled(page) {
		return false
	}
	g.held.set(page)
	g.mu.Lock()
	g.stats.Held++
	g.mu.Unlock()
	return true
}

// snapshot is what was done so far.
func (g *guest) snapshot() VMStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	s.P50Micros, s.P99Micros, s.MaxMicros = micros(g.took.quantile(0.5)), micros(g.took.quantile(0.99)), micros(g.took.max)
	s.estimate()
	return s
}
