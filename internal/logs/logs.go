// Package logs keeps a container's output in files: one JSON object per line
// with the time, the stream and the bytes, so that stdout and stderr stay
// apart and nothing of what the container wrote is changed. Reading gives the
// bytes back.
//
// A log is a row of segments: PATH, PATH.1, PATH.2, …; the higher the number,
// the newer. When one is full the next is begun and the oldest goes. No file
// is ever renamed, so a reader that follows the log knows where it stands
// whatever the writer does meanwhile.
//
// A log is never a reason for the container's end: what cannot be written, as
// on a full disk, is left out, and an entry says how much it was.
package logs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Stream is where a container wrote.
type Stream string

// The two streams.
const (
	Stdout Stream = "out"
	Stderr Stream = "err"
)

// Limits of a log's size, bytes of all of its segments. It is passed by what
// one write may add.
const (
	DefaultLimit = 64 << 20
	MinLimit     = 1 << 20
)

const (
	// segments is how many files a log that has reached its limit has.
	segments = 4

	// maxChunk bounds the bytes of one entry, maxLine its encoded form.
	maxChunk = 64 << 10
	maxLine  = 4*maxChunk + 1024
)

// Entry is one piece of output. Data is encoded as base64 by encoding/json,
// so any bytes are kept.
type Entry struct {
	Time   time.Time `json:"t"`
	Stream Stream    `json:"s"`
	Data   []byte    `json:"d"`

	// Lost is how many bytes that the container wrote before Time are not in
	// the log. An entry that has it has no Data.
	Lost int64 `json:"lost,omitempty"`
}

// LostUnread is an Entry's Lost that stands for an unknown number of bytes:
// they were in the log, but are not any more.
const LostUnread = -1

// segmentPath names a segment's file.
func segmentPath(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// listSegments returns the numbers of the segments that are there, oldest
// first.
func listSegments(path string) ([]int, error) {
	dir, base := filepath.Split(path)
	entries, err := os.ReadDir(filepath.Clean(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the log: %w", err)
	}
	var found []int
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), base)
		if !ok {
			continue
		}
		if rest == "" {
			found = append(found, 0)
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "."))
		if err == nil && n > 0 && rest == "."+strconv.Itoa(n) {
			found = append(found, n)
		}
	}
	slices.Sort(found)
	return found, nil
}
