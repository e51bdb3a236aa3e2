package memserver

import "math/bits"

// bitmap is a set of pages, by number.
type bitmap []uint64

func newBitmap(pages int) bitmap { return make(bitmap, (pages+63)/64) }

func (b bitmap) has(i int) bool { return b[i/64]>>(i%64)&1 != 0 }
func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i int)    { b[i/64] &^= 1 << (i % 64) }

func (b bitmap) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// next returns the first member from i on, or -1.
func (b bitmap) next(i int) int {
	for w := i / 64; w < len(b); w++ {
		word := b[w]
		if w == i/64 {
			word &= ^uint64(0) << (i % 64)
		}
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
	}
	return -1
}

// coarse is the set in pages that are by times as large: those that have a
// part in b.
func (b bitmap) coarse(by, pages int) bitmap {
	if by == 1 {
		return b
	}
	c := newBitmap(pages)
	for i := b.next(0); i >= 0; i = b.next((i/by + 1) * by) {
		c.set(i / by)
	}
	return c
}
