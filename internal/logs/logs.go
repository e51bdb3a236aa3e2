// Package logs keeps a container's output in a file: one JSON object per
// line with the time, the stream and the bytes, so that stdout and stderr
// stay apart and nothing of what the container wrote is changed. Reading
// gives the bytes back.
package logs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Stream is where a container wrote.
type Stream string

// The two streams.
const (
	Stdout Stream = "out"
	Stderr Stream = "err"
)

// maxChunk bounds the bytes of one entry, maxLine its encoded form.
const (
	maxChunk = 64 << 10
	maxLine  = 4*maxChunk + 1024
)

// Entry is one piece of output. Data is encoded as base64 by encoding/json,
// so any bytes are kept.
type Entry struct {
	Time   time.Time `json:"t"`
	Stream Stream    `json:"s"`
	Data   []byte    `json:"d"`
}

// Writer appends entries to a file. It is safe for concurrent use.
type Writer struct {
	mu   sync.Mutex
	f    *os.File
	size int64 // of the file, in whole lines
	now  func() time.Time
}

// Create opens a log file for appending.
func Create(path string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &Writer{f: f, size: st.Size(), now: time.Now}, nil
}

// Stream returns a writer whose bytes are logged as of that stream.
func (w *Writer) Stream(s Stream) io.Writer { return streamWriter{w, s} }

// Close closes the file.
func (w *Writer) Close() error { return w.f.Close() }

type streamWriter struct {
	w *Writer
	s Stream
}

func (s streamWriter) Write(p []byte) (int, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	n := 0
	for n < len(p) {
		c := p[n:min(len(p), n+maxChunk)]
		if err := s.w.append(Entry{Time: s.w.now().UTC(), Stream: s.s, Data: c}); err != nil {
			return n, fmt.Errorf("write log: %w", err)
		}
		n += len(c)
	}
	return n, nil
}

// append writes one line, or none: half a line, as on a full disk, would make
// all that follows it unreadable.
func (w *Writer) append(e Entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := w.f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, w.f.Truncate(w.size))
	}
	w.size += int64(len(b)) + 1
	return nil
}

// Read calls f for each entry of r, in order. A last line without an end,
// which a writer may just be writing, is left out.
func Read(r io.Reader, f func(Entry) error) error {
	b := bufio.NewReaderSize(r, maxLine)
	for n := 1; ; n++ {
		line, err := b.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log, line %d: %w", n, err)
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("read log, line %d: %w", n, err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}
