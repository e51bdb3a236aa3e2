package logs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Reader reads a log from its oldest entry on, and goes on where it stands
// when there is more.
type Reader struct {
	path   string
	f      *os.File // nil: at the beginning, or between two segments
	n      int      // number of the segment in f, or of the last one
	at     int64    // in f
	broken int
	gap    bool // segments went before they were read
}

// NewReader returns a reader of the log at path, which need not exist yet.
func NewReader(path string) *Reader { return &Reader{path: path, n: -1} }

// Close lets go of the log.
func (r *Reader) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// Broken is how many lines so far were none of a log's.
func (r *Reader) Broken() int { return r.broken }

// Read calls f for each entry that is there now and that it has not been
// called for. A last line without an end, which a writer may just be writing,
// is left for the next time; one that is broken is passed over, see Broken. A
// reader that is so slow that the log was rotated away below it gets an entry
// with Lost.
func (r *Reader) Read(f func(Entry) error) error {
	for {
		if r.f == nil {
			if more, err := r.next(); err != nil || !more {
				return err
			}
		}
		if r.gap {
			r.gap = false
			if err := f(Entry{Time: time.Now(), Stream: Stderr, Lost: LostUnread}); err != nil {
				return err
			}
		}
		if err := r.rest(f); err != nil {
			return err
		}
		have, err := listSegments(r.path)
		if err != nil {
			return err
		}
		if len(have) == 0 || have[len(have)-1] <= r.n {
			return nil
		}
		// What was appended between the last look and the next segment.
		if err := r.rest(f); err != nil {
			return err
		}
		_ = r.f.Close()
		r.f = nil
	}
}

// next opens the oldest segment that comes after the last one.
func (r *Reader) next() (bool, error) {
	for {
		have, err := listSegments(r.path)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(have, func(n int) bool { return n > r.n })
		if i < 0 {
			return false, nil
		}
		file, err := os.Open(segmentPath(r.path, have[i]))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was the oldest, and has gone
		}
		if err != nil {
			return false, fmt.Errorf("read log: %w", err)
		}
		r.gap = r.n >= 0 && have[i] > r.n+1
		r.f, r.n, r.at = file, have[i], 0
		return true, nil
	}
}

// rest reads on in the segment.
func (r *Reader) rest(f func(Entry) error) error {
	if _, err := r.f.Seek(r.at, io.SeekStart); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	n, broken, err := each(r.f, f)
	r.at += n
	r.broken += broken
	return err
}

// each calls f for the entries in whole lines of in. It returns how many
// bytes these lines have, and how many of them are none of a log's.
func each(in io.Reader, f func(Entry) error) (n int64, broken int, err error) {
	b := bufio.NewReaderSize(in, maxLine)
	var long int64 // of a line that is too long for an entry, so far
	for {
		line, err := b.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			long += int64(len(line))
			continue
		case errors.Is(err, io.EOF):
			return n, broken, nil
		case err != nil:
			return n, broken, fmt.Errorf("read log: %w", err)
		}
		n += long + int64(len(line))
		var e Entry
		if long > 0 || json.Unmarshal(line, &e) != nil || (e.Stream != Stdout && e.Stream != Stderr) {
			long = 0
			broken++
			continue
		}
		if err := f(e); err != nil {
			return n, broken, err
		}
	}
}
