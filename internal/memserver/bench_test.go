package memserver

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// guestStart is the pages that a guest touches when it goes on, and their
// order, as far as such things are alike: runs of a few pages, spread over a
// part of the memory, and one in twelve faults is on the page after the last
// one's.
func guestStart(pages int) []int {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[int]bool{}
	var order []int
	for len(order) < 2500 {
		p := r.IntN(pages/64)*64 + r.IntN(32)
		for n := 1 + r.IntN(12)/11*3; n > 0 && p < pages; n-- {
			if !seen[p] {
				seen[p] = true
				order = append(order, p)
			}
			p++
		}
	}
	return order
}

// fullMemory is a memory file of which three quarters are data.
func fullMemory(b *testing.B, path string, pages int) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 64*pageSize)
	for p := 0; p < pages; p += 64 {
		if p/64%4 == 3 {
			continue
		}
		for i := 0; i < len(buf); i += 512 {
			binary.LittleEndian.PutUint64(buf[i:], uint64(p+1)<<20|uint64(i))
		}
		if _, err := f.WriteAt(buf, int64(p*pageSize)); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Truncate(int64(pages * pageSize)); err != nil {
		b.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, f); err != nil { // into the page cache
		b.Fatal(err)
	}
}

// BenchmarkStart is the time that a VM of 512 MiB takes to touch what it needs
// to start: from a private mapping of the file, and from a server by itself,
// with neighbours, and with the working set ahead. All in one run, in turns:
// only their ratio means something on another machine.
func BenchmarkStart(b *testing.B) {
	const pages = 512 << 20 / 4096
	base := options(b, 1)
	fullMemory(b, base.Memory, pages)
	start := guestStart(pages)
	set := newBitmap(pages)
	for _, p := range start {
		set.set(p)
	}
	kinds := []string{"file", "single"}
	settings := map[string]vmmSettings{"file": {Memory: base.Memory, Mapped: true}}
	add := func(kind string, change func(*Options)) {
		o := base
		o.Socket, o.WorkingSet, o.Keep = filepath.Join(b.TempDir(), "s"), filepath.Join(b.TempDir(), "set"), true
		change(&o)
		settings[kind] = serve(b, o).settings()
	}
	add("single", func(o *Options) { o.Prefetch, o.FaultAround = false, pageSize })
	for _, kib := range []int{16, 32, 64, 128} {
		kind := fmt.Sprintf("around-%d", kib)
		kinds = append(kinds, kind)
		add(kind, func(o *Options) { o.Prefetch, o.FaultAround = false, kib<<10 })
	}
	kinds = append(kinds, "prefetch")
	add("prefetch", func(o *Options) {
		if err := saveSet(o.WorkingSet, set, int64(pageSize), pages*4096); err != nil {
			b.Fatal(err)
		}
	})
	took := map[string]time.Duration{}
	b.ResetTimer()
	for range b.N {
		for _, kind := range kinds {
			v := startVMM(b, settings[kind])
			took[kind] += v.do(order{Op: "touch", Pages: start})
			v.kill()
		}
	}
	for _, kind := range kinds {
		per := took[kind] / time.Duration(b.N)
		b.ReportMetric(float64(per.Microseconds())/1000, kind+"-ms")
	}
	b.ReportMetric(float64(took["prefetch"])/float64(took[fmt.Sprintf("around-%d", DefaultFaultAround>>10)]), "prefetch/without")
	b.ReportMetric(0, "ns/op")
}
