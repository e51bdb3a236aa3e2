package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newLog(t *testing.T) *Log {
	t.Helper()
	return New(filepath.Join(t.TempDir(), "events.jsonl"))
}

func TestAppendAndRead(t *testing.T) {
	l := newLog(t)
	old := time.Now().Add(-time.Hour)
	for _, e := range []Event{{Kind: Created, ID: "a", Time: old}, {Kind: Stopped, ID: "a", Detail: "x"}} {
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("garbage\n" + strings.Repeat("x", 3*maxLine) + "\n{\"event\":\"cre"); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for since, want := range map[time.Time]int{{}: 2, time.Now().Add(-time.Minute): 1} {
		n := 0
		if err := l.Read(since, func(Event) error { n++; return nil }); err != nil || n != want {
			t.Errorf("since %s: %d events, %v; want %d", since, n, err, want)
		}
	}
}

func TestFollowOverRotation(t *testing.T) {
	l := newLog(t)
	const n = 300
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	seen := 0
	all.Go(func() {
		if err := l.Follow(ctx, time.Time{}, func(e Event) error {
			if e.Name != fmt.Sprint(seen) {
				t.Errorf("event %s after %d", e.Name, seen)
				cancel()
			}
			if seen++; seen == n {
				cancel()
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	for i := range n {
		// Full after a few hundred: a rotation falls into the run.
		if err := l.Append(Event{Kind: Started, Name: fmt.Sprint(i), Detail: strings.Repeat("d", maxLine-1024)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	all.Wait()
	if seen != n {
		t.Errorf("%d events, want %d", seen, n)
	}
}

func TestHalfALineIsTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	for text, want := range map[string]string{"": "", "half": "", "whole\n": "whole\n", "whole\nhalf": "whole\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			err = errors.Join(takeBack(f), f.Close())
		}
		if got, _ := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%q becomes %q, %v; want %q", text, got, err, want)
		}
	}
}

// The log may be renamed between a reader's looks at its two files.
func TestReadWhileTheLogIsRenamed(t *testing.T) {
	for name, read := range map[string]func(*Log, func(Event) error) error{
		"read": func(l *Log, f func(Event) error) error { return l.Read(time.Time{}, f) },
		"follow": func(l *Log, f func(Event) error) error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*pollPause)
			defer cancel()
			return l.Follow(ctx, time.Time{}, f)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			if err := l.Append(Event{Kind: Created, Name: "first"}); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(l.path, l.old()); err != nil {
				t.Fatal(err)
			}
			if err := l.Append(Event{Kind: Created, Name: "second"}); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteString(strings.Repeat(strings.Repeat("x", 1000)+"\n", maxFile/1000))
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			if err := read(l, func(e Event) error {
				if seen[e.Name] = true; e.Name == "first" {
					return l.Append(Event{Kind: Created, Name: "third"})
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if !seen["first"] || !seen["second"] {
				t.Errorf("seen: %v", seen)
			}
		})
	}
}

// What happens while somebody follows is new, even if the clock was set back.
func TestFollowWhileTheClockIsSetBack(t *testing.T) {
	l := newLog(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := time.Now()
	if err := l.Append(Event{Kind: Created, Name: "old", Time: started.Add(-time.Minute)}); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(Event{Kind: Created, Name: "new"}); err != nil {
		t.Fatal(err)
	}
	var seen []string
	if err := l.Follow(ctx, started, func(e Event) error {
		if seen = append(seen, e.Name); e.Name == "back" {
			cancel()
			return nil
		}
		go func() {
			time.Sleep(2 * pollPause)
			_ = l.Append(Event{Kind: Created, Name: "back", Time: started.Add(-time.Hour)})
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "new back" {
		t.Errorf("seen: %s", got)
	}
}
