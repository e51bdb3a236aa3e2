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

// fill delivers those of the pages from first up to end that are missing and
// not held back, and returns how many. They are in one region.
func (g *guest) fill(r region, first, end int) (int, error) {
	if err := g.mem.check(); err != nil { // for holes, which are not read
		return 0, err
	}
	total := 0
	most := len(g.buf) / int(g.layout.page)
	for p := first; p < end; {
		from := g.source(p)
		run := 1
		for p+run < end && run < most && g.source(p+run) == from {
			run++
		}
		var n int
		var err error
		switch from {
		case fromZeros:
			n, err = g.deliver(r, p, run, nil)
		case fromFile:
			n, err = g.fillFromFile(r, p, run)
		}
		total += n
		if err != nil {
			return total, err
		}
		p += run
	}
	return total, nil
}

// fillFromFile delivers pages that the file may have something in. Those that
// are zeros all the same cost no memory either.
func (g *guest) fillFromFile(r region, first, n int) (int, error) {
	page := int(g.layout.page)
	b := g.buf[:n*page]
	if err := g.mem.read(b, int64(first)*int64(page)); err != nil {
		return 0, err
	}
	isZero := func(i int) bool { return bytes.Equal(b[i*page:(i+1)*page], g.zeros) }
	total := 0
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
		done, err := g.deliver(r, first+i, run, src)
		total += done
		if err != nil {
			return total, err
		}
		i += run
	}
	return total, nil
}

// deliver puts n pages in place, from src, or zeros if that is nil, and returns
// how many were missing.
func (g *guest) deliver(r region, first, n int, src []byte) (int, error) {
	page := int(g.layout.page)
	delivered := 0
	defer func() {
		if src == nil && g.scale() == 1 && delivered > 0 {
			g.mu.Lock()
			g.stats.Zero += uint64(delivered)
			g.mu.Unlock()
		}
	}()
	for i := 0; i < n; {
		addr := g.layout.address(r, first+i)
		var done int
		var err error
		switch {
		case src != nil:
			done, err = g.fd.Copy(addr, src[i*page:])
		case g.scale() > 1: // there is no huge page of zeros
			done, err = g.fd.Copy(addr, g.zeros)
		default:
			done, err = g.fd.Zero(addr, uint64((n-i)*page))
		}
		for j := range done / page {
			g.present.set(first + i + j)
		}
		delivered += done / page
		i += done / page
		switch {
		case err == nil && done < page:
			return delivered, fmt.Errorf("fill a page at %#x: %d bytes of it", addr, done)
		case errors.Is(err, uffd.ErrExists):
			// As good as delivered. Somebody may have begun to wait just before.
			g.present.set(first + i)
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
