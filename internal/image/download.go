package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// download stores a blob in a file and checks it. What the file has already,
// of a download that broke, is not asked for again if the source can help it.
func download(ctx context.Context, b blob, file string, p progress.Reporter) (err error) {
	name := "layer " + short(b.digest)
	if b.local {
		name = "copy " + name
	}
	task := p.Task(name, b.size)
	defer func() { task.Done(err) }()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	d := &transfer{b: b, f: f, task: task}
	err = d.run(ctx)
	if err == nil {
		err = f.Sync()
	} else if d.have == 0 {
		_ = os.Remove(file) // there is nothing to go on with
	}
	return errors.Join(err, f.Close())
}

// transfer is one download.
type transfer struct {
	b    blob
	f    *os.File
	task progress.Task
	sum  hash.Hash
	have int64 // bytes in the file, of which sum is
}

func (d *transfer) run(ctx context.Context) error {
	if err := d.resume(ctx); err != nil {
		return err
	}
	resumed := d.have > 0
	best, backoff := d.have, firstBackoff
	for try := 1; ; try++ {
		err := d.once(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrCorrupt) && resumed:
			// The half that was there may have been what is wrong.
			resumed = false
			if err := d.restart(); err != nil {
				return err
			}
			continue
		case !errors.Is(err, errBroken):
			if errors.Is(err, ErrCorrupt) {
				_ = d.restart()
			}
			return err
		case d.have > best:
			best, try, backoff = d.have, 0, firstBackoff
		case try >= requestTries:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// resume takes in what the file has.
func (d *transfer) resume(ctx context.Context) error {
	st, err := d.f.Stat()
	if err != nil {
		return err
	}
	if d.b.resume == nil || st.Size() > d.b.size {
		return d.restart()
	}
	d.sum = sha256.New()
	d.have, err = io.Copy(ctxWriter{ctx, d.sum}, d.f)
	d.task.Add(d.have)
	return err
}

// restart forgets what there is.
func (d *transfer) restart() error {
	d.task.Add(-d.have)
	d.sum, d.have = sha256.New(), 0
	if _, err := d.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return d.f.Truncate(0)
}

// once reads until the blob is complete or the connection breaks.
func (d *transfer) once(ctx context.Context) error {
	if d.have < d.b.size || d.have == 0 {
		r, err := d.open(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		in := &rootfs.FailReader{R: io.LimitReader(r, d.b.size-d.have+1)}
		n, err := io.Copy(io.MultiWriter(d.f, d.sum, taskWriter{d.task}), in)
		d.have += n
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && in.Err == nil: // writing failed: what was written is not known
			return errors.Join(err, d.restart())
		case errors.Is(in.Err, ErrCorrupt) || d.b.local && in.Err != nil:
			return in.Err
		case d.have < d.b.size:
			return fmt.Errorf("%w: %w after %d of %d bytes: try again", ErrRegistry, errBroken, d.have, d.b.size)
		}
	}
	if got := "sha256:" + hex.EncodeToString(d.sum.Sum(nil)); d.have != d.b.size || got != d.b.digest {
		return fmt.Errorf("%w: what came is not what its digest says (the manifest says %d bytes)", ErrCorrupt, d.b.size)
	}
	return nil
}

// open starts to read where the file ends, or at the start where the source
// has no other way.
func (d *transfer) open(ctx context.Context) (io.ReadCloser, error) {
	if d.have > 0 && d.b.resume != nil {
		r, err := d.b.resume(ctx, d.have)
		if !errors.Is(err, errNoRange) {
			return r, err
		}
	}
	if d.have > 0 {
		if err := d.restart(); err != nil {
			return nil, err
		}
	}
	return d.b.open(ctx)
}

type taskWriter struct{ progress.Task }

func (w taskWriter) Write(p []byte) (int, error) {
	w.Add(int64(len(p)))
	return len(p), nil
}
