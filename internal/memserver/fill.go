package memserver

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/fcvm/fcvm/internal/uffd"
)

// source is where a page comes from.
type source int

const (
	fromNowhere source = iota // it is there, or held back
	fromZeros
	fromFile
)

func (g *guest) source(page int) source {
	switch {
	case g.present.has(page) || g.held.has(page):
		return fromNowhere
	case g.removed.has(page):
		return fromZeros
	}
	first := page * g.scale()
	if next := g.mem.data.next(first); next >= 0 && next < first+g.scale() {
		return fromFile
	}
	return fromZeros
}

// piece is neighbouring pages that are about to be delivered.
type piece struct {
	r        region
	first, n int
	src      []byte // what they have; nil: zeros
}

// gather appends those of the pages from first up to end that are missing and not
// held back, with what they have. They are in one region. What it has read is good
// once g.mem.check has found the file as it was, and until discard: at most as many
// pages as g.buf has room for.
func (g *guest) gather(r region, first, end int) error {
	for p := first; p < end; {
		from := g.source(p)
		run := 1
		for p+run < end && g.source(p+run) == from {
			run++
		}
		switch from {
		case fromNowhere:
		case fromZeros:
			g.pieces = append(g.pieces, piece{r: r, first: p, n: run})
		case fromFile:
			if err := g.gatherFromFile(r, p, run); err != nil {
				return err
			}
		}
		p += run
	}
	return nil
}

// gatherFromFile appends pages that the file may have something in. Those that are
// zeros all the same cost no memory either.
func (g *guest) gatherFromFile(r region, first, n int) error {
	page := int(g.layout.page)
	b := g.buf[g.read : g.read+n*page]
	if err := g.mem.read(b, int64(first)*int64(page)); err != nil {
		return err
	}
	g.read += len(b)
	isZero := func(i int) bool { return bytes.Equal(b[i*page:(i+1)*page], g.zeros) }
	for i := 0; i < n; {
		zero := isZero(i)
		run := 1
		for i+run < n && isZero(i+run) == zero {
			run++
		}
		src := b[i*page : (i+run)*page]
		if zero {
			src = nil
		}
		g.pieces = append(g.pieces, piece{r, first + i, run, src})
		i += run
	}
	return nil
}

// discard forgets what was gathered.
func (g *guest) discard() { g.pieces, g.read = g.pieces[:0], 0 }

// fill delivers what was gathered, if the memory file has not changed meanwhile, and
// returns how many pages that were.
func (g *guest) fill() (int, error) {
	if err := g.mem.check(); err != nil {
		return 0, err
	}
	total := 0
	for _, p := range g.pieces {
		n, err := g.deliver(p)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// deliver puts pages in place, and returns how many were missing.
func (g *guest) deliver(p piece) (int, error) {
	page := int(g.layout.page)
	delivered := 0
	defer func() {
		if p.src == nil && g.scale() == 1 && delivered > 0 {
			g.mu.Lock()
			g.stats.Zero += uint64(delivered)
			g.mu.Unlock()
		}
	}()
	for i := 0; i < p.n; {
		addr := g.layout.address(p.r, p.first+i)
		var done int
		var err error
		switch {
		case p.src != nil:
			done, err = g.fd.Copy(addr, p.src[i*page:])
		case g.scale() > 1: // there is no huge page of zeros
			done, err = g.fd.Copy(addr, g.zeros)
		default:
			done, err = g.fd.Zero(addr, uint64((p.n-i)*page))
		}
		for j := range done / page {
			g.present.set(p.first + i + j)
		}
		delivered += done / page
		i += done / page
		switch {
		case err == nil && done < page:
			return delivered, fmt.Errorf("fill a page at %#x: %d bytes of it", addr, done)
		case errors.Is(err, uffd.ErrExists):
			// As good as delivered. Somebody may have begun to wait just before.
			g.present.set(p.first + i)
			if err := g.fd.Wake(addr, g.layout.page); err != nil {
				return delivered, err
			}
			i++
		case errors.Is(err, uffd.ErrUnmapped):
			i++
		case err != nil:
			return delivered, err
		}
	}
	return delivered, nil
}
