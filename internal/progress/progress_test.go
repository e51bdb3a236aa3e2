package progress

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPlainPrintsOneLinePerFinishedStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		p := NewPlain(&b)
		d := p.Task("download kernel", 3<<20)
		d.Add(1 << 20)
		d.Add(2 << 20)
		time.Sleep(2 * time.Second)
		d.Done(nil)
		u := p.Task("unpack\nkernel", 0)
		time.Sleep(30 * time.Millisecond)
		u.Done(nil)
		p.Task("build root", 0).Done(errors.New("no space"))
		p.Note("kernel 6.1 \x1b[31mis installed")
		want := "download kernel: 3.0 MiB in 2.0s\nunpack kernel: done in 30ms\nbuild root: failed\nkernel 6.1  [31mis installed\n"
		if b.String() != want {
			t.Errorf("got  %q\nwant %q", b.String(), want)
		}
	})
}

func TestTerminalRedrawsInPlaceAndErasesAtClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t, 80)
		term := NewTerminal(s, TerminalOptions{})
		a := term.Task("convert image", 100<<20)
		b := term.Task("boot", 0)
		if got := s.lines(); got != nil {
			t.Errorf("drawn before the first frame: %q", got)
		}
		for range 10 {
			a.Add(4 << 20)
			time.Sleep(framePeriod)
		}
		synctest.Wait()
		got := s.lines()
		if len(got) != 2 || !strings.Contains(got[0], "convert image") || !strings.Contains(got[0], "40.0 MiB of 100.0 MiB") ||
			!strings.Contains(got[0], " MiB/s  1") || !strings.Contains(got[0], "[====") || !strings.Contains(got[1], "boot") {
			t.Errorf("screen:\n%s", strings.Join(got, "\n"))
		}
		term.Note("a note")
		if got := s.lines(); len(got) != 3 || got[0] != "a note" {
			t.Errorf("screen after a note:\n%s", strings.Join(got, "\n"))
		}
		a.Done(nil)
		term.Close()
		b.Done(nil)
		term.Task("late", 0).Done(nil)
		term.Close()
		term.Note("after")
		if got := s.lines(); !slices.Equal(got, []string{"a note", "after"}) {
			t.Errorf("screen after Close:\n%s", strings.Join(got, "\n"))
		}
	})
}

func TestTerminalKeepsOneLinePerStepWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t, 80)
		term := NewTerminal(s, TerminalOptions{Keep: true})
		a, b := term.Task("one", 0), term.Task("two", 0)
		time.Sleep(1050 * time.Millisecond)
		a.Done(nil)
		b.Done(errors.New("no"))
		term.Close()
		if got := s.lines(); !slices.Equal(got, []string{"one: done in 1.1s", "two: failed"}) {
			t.Errorf("screen:\n%s", strings.Join(got, "\n"))
		}
	})
}

func TestTerminalFitsNarrowAndShrinkingScreens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		cols := 60
		s := newScreen(t, cols)
		term := NewTerminal(s, TerminalOptions{Size: func() (int, int) {
			mu.Lock()
			defer mu.Unlock()
			return 4, cols
		}})
		for _, name := range []string{strings.Repeat("long name ", 12), "世界" + strings.Repeat("界", 40), "c", "d", "e"} {
			k := term.Task(name, 1000)
			defer k.Done(nil)
			k.Add(10)
		}
		time.Sleep(framePeriod)
		synctest.Wait()
		got := s.lines()
		if len(got) != 3 {
			t.Errorf("a screen of 4 rows shows %d lines of 5 steps:\n%s", len(got), strings.Join(got, "\n"))
		}
		for _, l := range got {
			if width(l) >= 60 {
				t.Errorf("line of %d columns on a screen of 60: %q", width(l), l)
			}
		}
		// A terminal that becomes narrower wraps what is on it.
		mu.Lock()
		cols = 25
		mu.Unlock()
		s.reflow(25)
		term.Close()
		if got := s.lines(); len(got) != 0 {
			t.Errorf("left on a screen that shrank:\n%s", strings.Join(got, "\n"))
		}
	})
}

// reflow makes the screen narrower, as terminals do: long lines are wrapped.
func (s *screen) reflow(cols int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows [][]rune
	for _, r := range s.rows {
		// A wide character takes two columns, which this screen does not
		// know: wrap by what the reporter counted.
		line := string(r)
		n := max(1, (width(line)+cols-1)/cols)
		for range n - 1 {
			rows = append(rows, []rune("x"))
		}
		rows = append(rows, r)
	}
	s.y += len(rows) - len(s.rows)
	s.rows, s.cols = rows, 1000
}

func TestTerminalIsSafeForConcurrentUse(*testing.T) {
	term := NewTerminal(io.Discard, TerminalOptions{Keep: true})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				k := term.Task("step", 1000)
				k.Add(500)
				term.Note("note")
				k.Done(nil)
			}
		})
	}
	wg.Wait()
	term.Close()
}

func TestFormatBytesAndDuration(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 53 << 20: "53.0 MiB", 5 << 40: "5.0 TiB"} {
		if got := FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 1500 * time.Microsecond: "2ms", 2100 * time.Millisecond: "2.1s", 185 * time.Second: "3m05s", 2 * time.Hour: "2h0m0s",
	} {
		if got := FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestFitNeverExceedsItsColumns(t *testing.T) {
	for _, s := range []string{"", "abc", "世界世界", "a世b界", strings.Repeat("x", 200)} {
		for cols := range 12 {
			if w := width(fit(s, cols)); w > cols {
				t.Errorf("fit(%q, %d) takes %d columns", s, cols, w)
			}
		}
	}
}

func TestBarIsAlwaysAsWideAsAsked(t *testing.T) {
	for _, done := range []int64{0, 1, 50, 99, 100, 5000} {
		if b := bar(20, done, 100); len(b) != 22 {
			t.Errorf("bar at %d%% is %q", done, b)
		}
	}
}
