package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Writer appends entries to a log. It is safe for concurrent use.
type Writer struct {
	path  string
	limit int64 // of one segment
	now   func() time.Time

	mu      sync.Mutex
	f       *os.File
	n       int   // number of the segment in f
	size    int64 // of f, in whole lines
	lost    int64 // bytes not written, and not told of in the log yet
	allLost int64
	why     error // the last reason for it
}

// Create opens a log for appending. limit bounds its size, bytes; 0 stands
// for DefaultLimit.
func Create(path string, limit int64) (*Writer, error) {
	if limit == 0 {
		limit = DefaultLimit
	}
	w := &Writer{path: path, limit: max(limit, MinLimit) / segments, now: time.Now}
	have, err := listSegments(path)
	if err != nil {
		return nil, err
	}
	if len(have) > 0 {
		w.n = have[len(have)-1]
	}
	if err := w.open(w.n); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return w, nil
}

// open makes or continues a segment and lets go of the one before it.
func (w *Writer) open(n int) error {
	f, err := os.OpenFile(segmentPath(w.path, n), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	size, err := wholeLines(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if w.f != nil {
		_ = w.f.Close() // all of it is written
	}
	w.f, w.n, w.size = f, n, size
	return nil
}

// wholeLines cuts off half a line that a writer who was killed has left, and
// returns the file's size.
func wholeLines(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	end := make([]byte, min(st.Size(), maxLine))
	if _, err := f.ReadAt(end, st.Size()-int64(len(end))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	half := len(end) - 1 - bytes.LastIndexByte(end, '\n')
	if half == 0 {
		return st.Size(), nil
	}
	size := st.Size() - int64(half)
	return size, f.Truncate(size)
}

// Stream returns a writer whose bytes are logged as of that stream. It never
// fails: see Lost.
func (w *Writer) Stream(s Stream) io.Writer { return streamWriter{w, s} }

// Lost says how many bytes could not be written, and why the last ones could
// not.
func (w *Writer) Lost() (n int64, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.allLost, w.why
}

// Close tells of what is missing at the end, if it can, and closes the log.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.tellLost() // Lost knows
	return w.f.Close()
}

type streamWriter struct {
	w *Writer
	s Stream
}

func (s streamWriter) Write(p []byte) (int, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		c := rest[:min(len(rest), maxChunk)]
		rest = rest[len(c):]
		err := s.w.tellLost()
		if err == nil {
			err = s.w.append(Entry{Time: s.w.now().UTC(), Stream: s.s, Data: c})
		}
		if err != nil {
			s.w.lost += int64(len(c))
			s.w.allLost += int64(len(c))
			s.w.why = err
		}
	}
	return len(p), nil
}

// tellLost writes how much is missing, once there is room for that.
func (w *Writer) tellLost() error {
	if w.lost == 0 {
		return nil
	}
	err := w.append(Entry{Time: w.now().UTC(), Stream: Stderr, Lost: w.lost})
	if err == nil {
		w.lost = 0
	}
	return err
}

// append writes one line, or none: half a line, as on a full disk, would make
// all that follows it unreadable.
func (w *Writer) append(e Entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if w.size >= w.limit {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	if _, err := w.f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, w.f.Truncate(w.size))
	}
	w.size += int64(len(b)) + 1
	return nil
}

// rotate begins the next segment and drops those that are too many.
func (w *Writer) rotate() error {
	if err := w.open(w.n + 1); err != nil {
		return err
	}
	have, err := listSegments(w.path)
	if err != nil {
		return nil // the next one tries again
	}
	for _, n := range have {
		if n <= w.n-segments {
			_ = os.Remove(segmentPath(w.path, n))
		}
	}
	return nil
}
