package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// maxScans is how many layers are decompressed and checked at once; more than
// there are processors would only take memory.
const maxScans = 4

// merge reads all layers, several at once, checks their digests and applies
// what they hold in order. A layer that is done waits, as its headers, for
// those below it.
func merge(ctx context.Context, layers []Layer, o Options) (*tree, error) {
	t := newTree(o.Limits)
	b := &budget{limits: o.Limits.orDefault()}
	scans := make([]*scan, len(layers))
	for i := range scans {
		scans[i] = &scan{done: make(chan struct{})}
	}
	ctx, cancel := context.WithCancel(ctx)
	g := new(errgroup.Group)
	g.SetLimit(max(1, min(maxScans, runtime.GOMAXPROCS(0))))
	started := make(chan struct{})
	go func() { // starting them waits for those that run
		defer close(started)
		for i, l := range layers {
			g.Go(func() error {
				defer close(scans[i].done)
				scans[i].headers, scans[i].err = readHeaders(ctx, l, b, o.Progress)
				return nil
			})
		}
	}()
	defer func() {
		cancel()
		<-started
		_ = g.Wait() // a layer's reader is the caller's again
	}()
	for i, s := range scans {
		<-s.done
		t.nextLayer()
		err := s.err
		for seq, h := range s.headers {
			if err != nil {
				break
			}
			err = t.apply(h, seq)
			s.headers[seq] = nil
		}
		if err != nil {
			return nil, fmt.Errorf("read layer %s: %w", layers[i].Name, err)
		}
		s.headers = nil
	}
	return t, nil
}

// scan is what was read of one layer.
type scan struct {
	headers []*tar.Header
	err     error
	done    chan struct{} // closed when the rest is there
}

// budget bounds what the headers of all layers take before the tree counts
// them again, one by one.
type budget struct {
	limits                  Limits
	entries, bytes, strings atomic.Int64
}

func (b *budget) take(h *tar.Header) error {
	if n := b.entries.Add(1); n > int64(b.limits.Entries) {
		return fmt.Errorf("%w: over %d entries", ErrTooLarge, b.limits.Entries)
	}
	if n := b.bytes.Add(max(0, h.Size)); h.Size > b.limits.Bytes || n > b.limits.Bytes || n < 0 {
		return fmt.Errorf("%w: over %d MiB of files", ErrTooLarge, b.limits.Bytes>>20)
	}
	size := len(h.Name) + len(h.Linkname)
	for k, v := range h.PAXRecords {
		size += len(k) + len(v)
	}
	if n := b.strings.Add(int64(size)); n > b.limits.Strings+int64(b.limits.Entries)*pathSlack {
		return fmt.Errorf("%w: over %d MiB of names and attributes", ErrTooLarge, b.limits.Strings>>20)
	}
	return nil
}

// pathSlack is what a path may be longer than the name that the tree keeps of
// it, on the average of all entries.
const pathSlack = 128

// readHeaders reads a layer to its end and checks its digest.
func readHeaders(ctx context.Context, l Layer, b *budget, progress func(int64)) ([]*tar.Header, error) {
	r, err := openLayer(ctx, l, progress)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	tr := tar.NewReader(r)
	var headers []*tar.Header
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return headers, corrupt(err)
		}
		if err := b.take(h); err != nil {
			return headers, err
		}
		headers = append(headers, slim(h))
	}
	return headers, r.verify()
}

// slim returns what is used of a header, which is to wait for its turn. Most
// have records for a fraction of a second only, of which ModTime has been made.
func slim(h *tar.Header) *tar.Header {
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, xattrPrefix) {
			out.PAXRecords = h.PAXRecords
			break
		}
	}
	return out
}

// apply applies an entry of the current layer.
func (t *tree) apply(h *tar.Header, seq int) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return t.grow(&t.entries)
	}
	return t.add(h, seq)
}
