package vmm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
)

// tailBytes is how much of a console or log is looked at for a reason.
const tailBytes = 64 << 10

// Tail returns the last n lines of a file, without control characters that a
// terminal would act on: what a guest writes to its console is its own.
func Tail(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > tailBytes {
		_, err = f.Seek(end-tailBytes, io.SeekStart)
		if err != nil {
			return nil
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	var lines []string
	for line := range bytes.Lines(b) {
		if l := strings.TrimRight(printable(line), " "); l != "" {
			lines = append(lines, l)
		}
	}
	return lines[max(0, len(lines)-n):]
}

func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || (r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f)) {
			return r
		}
		return -1
	}, string(b))
}

// PanicLine returns what the guest's kernel said when it panicked, as the
// console has it, or "".
func PanicLine(console string) string {
	const mark = "Kernel panic - not syncing"
	for _, l := range Tail(console, 200) {
		if i := strings.Index(l, mark); i >= 0 {
			return l[i:]
		}
	}
	return ""
}
