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
	mu  sync.Mutex
	f   *os.File
	now func() time.Time
}

// Create opens a log file for appending.
func Create(path string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &Writer{f: f, now: time.Now}, nil
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
		b, err := json.Marshal(Entry{Time: s.w.now().UTC(), Stream: s.s, Data: c})
		if err != nil {
			return n, err
		}
		if _, err := s.w.f.Write(append(b, '\n')); err != nil {
			return n, fmt.Errorf("write log: %w", err)
		}
		n += len(c)
	}
	return n, nil
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
