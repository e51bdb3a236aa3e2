// Package events is what has happened to the VMs of a data directory, as one
// file of JSON lines that everybody appends to: supervisors, and commands that
// find a VM without one. There is no daemon that could tell.
//
// The file is bounded: when it is full it is renamed and a new one begun.
// Events older than the two are gone.
package events

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// Kind of an event.
type Kind string

// What happens to a VM.
const (
	Created Kind = "created"
	Started Kind = "started" // the container runs
	Ready   Kind = "ready"   // the readiness gate is open
	Health  Kind = "health"  // Detail is the new state
	Paused  Kind = "paused"
	Resumed Kind = "resumed"
	Renamed Kind = "renamed" // Detail is the old name
	Stopped Kind = "stopped" // Detail is the reason
	Removed Kind = "removed"
)

const (
	maxFile = 4 << 20 // bytes of one file
	maxLine = 16 << 10
	// pollPause is how often a follower looks for more.
	pollPause = 100 * time.Millisecond
)

// Event is one line.
type Event struct {
	Time     time.Time `json:"time"`
	Kind     Kind      `json:"event"`
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Image    string    `json:"image,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	ExitCode *int      `json:"exit_code,omitempty"`
}

// Log is the events of one data directory. It is safe for concurrent use by
// several processes.
type Log struct{ path string }

// New returns the log in the file at path, which need not exist.
func New(path string) *Log { return &Log{path} }

// Append writes one event, with the present time unless it has one.
func (l *Log) Append(e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	lock := flock.New(l.path+".lock", flock.SetPermissions(0o600))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if st, err := os.Stat(l.path); err == nil && st.Size() > maxFile {
		if err := os.Rename(l.path, l.old()); err != nil {
			return fmt.Errorf("write event: %w", err)
		}
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	if _, err = f.Write(append(b, '\n')); err != nil {
		err = errors.Join(err, takeBack(f)) // the next one would be lost with it
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// takeBack cuts off half a line, as a full disk leaves it.
func takeBack(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	end := make([]byte, min(st.Size(), maxLine))
	r, err := os.Open(f.Name())
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if _, err := r.ReadAt(end, st.Size()-int64(len(end))); err != nil {
		return err
	}
	return f.Truncate(st.Size() - int64(len(end)-1-bytes.LastIndexByte(end, '\n')))
}

func (l *Log) old() string { return l.path + ".1" }

// open opens the two files of the log as they are at one moment; nil: there is
// none. Between two looks the newer one may become the older.
func (l *Log) open() (old, now *os.File, err error) {
	for {
		if old, err = openFile(l.old()); err == nil {
			now, err = openFile(l.path)
		}
		if err == nil && isAt(l.old(), old) {
			return old, now, nil
		}
		closeAll(old, now)
		if err != nil {
			return nil, nil, fmt.Errorf("read events: %w", err)
		}
	}
}

func openFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// isAt reports whether a file that was opened is the one at a path.
func isAt(path string, f *os.File) bool {
	there, err := os.Stat(path)
	if err != nil || f == nil {
		return err != nil && f == nil
	}
	st, err := f.Stat()
	return err == nil && os.SameFile(there, st)
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Read calls f for each event from since on that is there now.
func (l *Log) Read(since time.Time, f func(Event) error) error {
	old, now, err := l.open()
	if err != nil {
		return err
	}
	defer closeAll(old, now)
	for _, file := range []*os.File{old, now} {
		if file == nil {
			continue
		}
		if _, err := each(file, since, f); err != nil {
			return err
		}
	}
	return nil
}

// Follow is Read that goes on with what comes, until ctx ends, which is no error.
func (l *Log) Follow(ctx context.Context, since time.Time, f func(Event) error) error {
	old, file, err := l.open()
	if err != nil {
		return err
	}
	defer func() { closeAll(old, file) }()
	if old != nil {
		_, err := each(old, since, f)
		if _ = old.Close(); err != nil {
			return err
		}
		old = nil
	}
	for {
		if file == nil {
			if opened, err := os.Open(l.path); err == nil {
				file = opened
			}
		}
		if file != nil {
			if err := next(file, since, f); err != nil {
				return err
			}
		}
		if !since.After(time.Now()) {
			since = time.Time{} // what comes from here on is new, whatever a clock says that was set back
		}
		if file != nil && l.renamed(file) {
			// What was appended between the last look and the renaming.
			if err := next(file, since, f); err != nil {
				return err
			}
			_ = file.Close()
			file = nil
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollPause):
		}
	}
}

// next reads whole lines from where the file stands.
func next(file *os.File, since time.Time, f func(Event) error) error {
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	n, err := each(file, since, f)
	if err != nil {
		return err
	}
	_, err = file.Seek(at+n, io.SeekStart)
	return err
}

// renamed reports whether the log has gone on in another file.
func (l *Log) renamed(file *os.File) bool {
	_, err := os.Stat(l.path)
	return err == nil && !isAt(l.path, file) // else there is no new one yet
}

// each calls f for the whole lines of r, and returns how many bytes they have.
// A line that is no event is passed over: a full disk may have cut it.
func each(r io.Reader, since time.Time, f func(Event) error) (int64, error) {
	var n int64
	b := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := b.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			n += int64(len(line))
			continue
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("read events: %w", err)
		}
		n += int64(len(line))
		var e Event
		if json.Unmarshal(line, &e) != nil || e.Kind == "" || e.Time.Before(since) {
			continue
		}
		if err := f(e); err != nil {
			return n, err
		}
	}
}
