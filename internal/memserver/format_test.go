package memserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const testPage = 4096

func TestLayout(t *testing.T) {
	const gib = 1 << 30
	l, err := parseLayout([]byte(`[
		{"base_host_virt_addr": 139894420733952, "size": 3221225472, "offset": 0, "page_size": 4096, "page_size_kib": 4096},
		{"base_host_virt_addr": 139893346992128, "size": 1073741824, "offset": 3221225472, "page_size": 4096, "page_size_kib": 4096, "new": {}}
	]`), testPage, 4*gib)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[uint64]int{
		139894420733952: 0, 139894420733952 + 3*gib - 1: 3*gib/testPage - 1,
		139893346992128: 3 * gib / testPage, 139893346992128 + 5*testPage + 17: 3*gib/testPage + 5,
	} {
		page, r, ok := l.at(addr)
		if !ok || page != want || l.address(r, page) != addr&^(testPage-1) {
			t.Errorf("%#x is page %d (%t) at %#x, want %d", addr, page, ok, l.address(r, page), want)
		}
		if of, ok := l.of(page); !ok || of != r {
			t.Errorf("page %d is of %+v", page, of)
		}
	}
	for _, addr := range []uint64{0, 139893346992128 - 1, 139894420733952 + 3*gib, ^uint64(0)} {
		if page, _, ok := l.at(addr); ok {
			t.Errorf("%#x is page %d", addr, page)
		}
	}
	if _, ok := l.of(4 * gib / testPage); ok {
		t.Error("a page behind the end has a region")
	}
}

func TestPageSizeOfAllReleases(t *testing.T) {
	for fields, want := range map[string]uint64{
		``:                          testPage,
		`,"page_size_kib":4`:        testPage,
		`,"page_size_kib":4096`:     testPage,
		`,"page_size_kib":2048`:     hugePage,
		`,"page_size_kib":2097152`:  hugePage,
		`,"page_size":2097152`:      hugePage,
		`,"page_size":4096`:         testPage,
		`,"page_size":1073741824`:   0,
		`,"page_size":0`:            0,
		`,"page_size_kib":0`:        0,
		`,"page_size_kib":16`:       0,
		`,"page_size_kib":67108865`: 0,
	} {
		l, err := parseLayout([]byte(`[{"base_host_virt_addr":4194304,"size":4194304,"offset":0`+fields+`}]`), testPage, 4<<20)
		if l.page != want || (err == nil) != (want != 0) {
			t.Errorf("%s: %d, %v; want %d", fields, l.page, err, want)
		}
	}
}

func TestLayoutIsRefused(t *testing.T) {
	r := func(addr, size, offset uint64) string {
		return fmt.Sprintf(`{"base_host_virt_addr":%d,"size":%d,"offset":%d,"page_size":4096}`, addr, size, offset)
	}
	const top = 1<<64 - testPage
	for text, why := range map[string]string{
		`[`:                              "",
		`{}`:                             "",
		`[]`:                             "0 regions",
		`[1]`:                            "",
		`[{"size":-1}]`:                  "",
		`[` + r(4096, 0, 0) + `]`:        "empty",
		`[` + r(4097, 4096, 0) + `]`:     "aligned",
		`[` + r(4096, 4095, 0) + `]`:     "aligned",
		`[` + r(4096, 4096, 512) + `]`:   "aligned",
		`[` + r(4096, 1<<20, 4096) + `]`: "not in a memory file",
		`[` + r(4096, 4096, 1<<20) + `]`: "not in a memory file",
		`[` + r(4096, top, 0) + `]`:      "not in a memory file",
		`[` + r(4096, 8192, top) + `]`:   "not in a memory file",
		`[` + r(top, 8192, 0) + `]`:      "wrap",
		`[` + r(0, 8192, 0) + `,` + r(4096, 4096, 8192) + `]`:                                                         "share addresses",
		`[` + r(0, 8192, 0) + `,` + r(1<<20, 4096, 4096) + `]`:                                                        "share a part of the file",
		`[` + strings.Repeat(r(0, 4096, 0)+`,`, maxRegions) + r(0, 4096, 0) + `]`:                                     "129 regions",
		`[` + r(0, 4096, 0) + `,{"base_host_virt_addr":2097152,"size":2097152,"offset":2097152,"page_size":2097152}]`: "two sizes",
	} {
		_, err := parseLayout([]byte(text), testPage, 1<<20)
		if !errors.Is(err, errHandshake) || !strings.Contains(err.Error(), why) {
			t.Errorf("%.200s: %v, want %q", text, err, why)
		}
	}
}

// Whatever is accepted can be served: every page of the file is at one address
// at most, and back.
func FuzzLayout(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":139894420733952,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096}]`), uint64(1<<20))
	f.Add([]byte(`[{"base_host_virt_addr":0,"size":4096,"offset":4096,"page_size_kib":4},{"base_host_virt_addr":8192,"size":4096,"offset":0}]`), uint64(8192))
	f.Add([]byte(`[{"base_host_virt_addr":2097152,"size":2097152,"page_size":2097152}]`), uint64(1<<21))
	f.Fuzz(func(t *testing.T, b []byte, memory uint64) {
		memory = memory % maxMemory &^ (testPage - 1)
		l, err := parseLayout(b, testPage, memory)
		if err != nil {
			return
		}
		for _, r := range l.regions {
			first, end := l.span(r)
			if first >= end || uint64(end)*l.page > memory {
				t.Fatalf("pages %d to %d of %d bytes", first, end, memory)
			}
			for _, p := range []int{first, (first + end) / 2, end - 1} {
				addr := l.address(r, p)
				back, in, ok := l.at(addr + l.page - 1)
				of, found := l.of(p)
				if !ok || back != p || in != r || !found || of != r {
					t.Fatalf("page %d is at %#x, where page %d is", p, addr, back)
				}
			}
		}
	})
}

func TestWorkingSetFile(t *testing.T) {
	const pages = 130
	memory := int64(pages * testPage)
	set := newBitmap(pages)
	for _, p := range []int{0, 1, 63, 64, 127, 129} {
		set.set(p)
	}
	path := filepath.Join(t.TempDir(), "set")
	if got, err := loadSet(path, testPage, memory); got != nil || err != nil {
		t.Errorf("there is none: %v, %v", got, err)
	}
	if err := saveSet(path, set, testPage, memory); err != nil {
		t.Fatal(err)
	}
	if got, err := loadSet(path, testPage, memory); err != nil || !slices.Equal(got, set) {
		t.Errorf("%v, %v; want %v", got, err, set)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadSet(path, testPage, memory+64*testPage); err == nil {
		t.Error("it is taken for another memory file's, of another size")
	}
	if _, err := loadSet(path, testPage, memory+testPage); err == nil || !strings.Contains(err.Error(), "another memory file") {
		t.Errorf("as that of a memory file with a page more: %v", err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if _, err := decodeSet(bad, testPage, memory); err == nil {
			t.Errorf("byte %d is wrong, and nobody notices", i)
		}
	}
	for n := range good {
		if _, err := decodeSet(good[:n], testPage, memory); err == nil {
			t.Errorf("cut off after %d bytes, and nobody notices", n)
		}
	}
	// With a good checksum, but nonsense.
	for off, why := range map[int]string{8: "version", 24: "number", 32 + 16: "outside"} {
		bad := bytes.Clone(good[:len(good)-sha256.Size])
		bad[off] ^= 0x40
		sum := sha256.Sum256(bad)
		if _, err := decodeSet(append(bad, sum[:]...), testPage, memory); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("byte %d: %v, want %q", off, err, why)
		}
	}
	if _, err := loadSet(t.TempDir(), testPage, memory); err == nil {
		t.Error("a directory is taken for one")
	}
}

// Whatever is accepted is written the same way again.
func FuzzWorkingSet(f *testing.F) {
	seal := func(b []byte) []byte {
		sum := sha256.Sum256(b)
		return append(slices.Clone(b), sum[:]...)
	}
	set := newBitmap(70)
	set.set(3)
	set.set(69)
	whole := encodeSet(set, testPage, 70*testPage)
	f.Add(whole[:len(whole)-sha256.Size], uint16(70))
	f.Add([]byte(setMagic), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, pages uint16) {
		memory := int64(pages) * testPage
		b = seal(b)
		set, err := decodeSet(b, testPage, memory)
		if err != nil {
			return
		}
		if p := set.next(int(pages)); int(pages) < 64*len(set) && p >= 0 {
			t.Fatalf("page %d of %d", p, pages)
		}
		if !bytes.Equal(encodeSet(set, testPage, memory), b) {
			t.Fatal("it is not the same again")
		}
	})
}

func TestBitmap(t *testing.T) {
	const n = 300
	b, want := newBitmap(n), map[int]bool{}
	for range 200 {
		i := rand.IntN(n)
		if rand.IntN(3) == 0 {
			b.clear(i)
			delete(want, i)
		} else {
			b.set(i)
			want[i] = true
		}
	}
	var members []int
	for i := b.next(0); i >= 0; i = b.next(i + 1) {
		members = append(members, i)
	}
	if len(members) != len(want) || b.count() != len(want) {
		t.Errorf("%d members, counted %d, want %d", len(members), b.count(), len(want))
	}
	c := b.coarse(7, (n+6)/7)
	for i := range n {
		if b.has(i) != want[i] {
			t.Errorf("%d: %t", i, b.has(i))
		}
		if b.has(i) && !c.has(i/7) {
			t.Errorf("%d is not in the coarse set", i)
		}
	}
	for i := c.next(0); i >= 0; i = c.next(i + 1) {
		if p := b.next(7 * i); p < 0 || p >= 7*(i+1) {
			t.Errorf("the coarse set has %d and the set nothing there", i)
		}
	}
	var none bitmap
	if none.count() != 0 || none.next(0) != -1 || b.next(64*len(b)) != -1 {
		t.Error("there is something in nothing")
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("the median of nothing")
	}
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := h.quantile(q); got < want*15/16 || got > want*17/16 {
			t.Errorf("quantile %v: %s, want about %s", q, got, want)
		}
	}
	for _, ns := range []uint64{0, 1, 15, 16, 17, 31, 32, 1000, 1 << 40, 1<<63 - 1} {
		if got := uint64(middle(bucket(ns))); got > ns+ns/16 || got < ns-ns/16 {
			t.Errorf("%d ns count as %d", ns, got)
		}
	}
}

func TestStatsAreShown(t *testing.T) {
	v := VMStats{PID: 7, Faults: 10, Pushed: 128, Held: 4, HeldUsed: 3}
	v.estimate()
	if got := v.String(); !strings.Contains(got, "process 7: 10 faults") || !strings.Contains(got, "128 pushed (about 96 of them used)") {
		t.Errorf("%s", got)
	}
	b, err := json.Marshal(VMStats{VM: "web"})
	if err != nil || strings.Contains(string(b), "used\"") && strings.Contains(string(b), "pushed_pages_used") {
		t.Errorf("an estimate without a sample: %s, %v", b, err)
	}
}
