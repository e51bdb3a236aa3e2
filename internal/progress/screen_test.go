package progress

import (
	"strings"
	"sync"
	"testing"
)

// screen is a terminal of fixed width that understands what Terminal sends:
// text with wrapping, CR, LF, cursor up and erase below.
type screen struct {
	t    *testing.T
	mu   sync.Mutex
	cols int
	rows [][]rune
	y, x int
}

func newScreen(t *testing.T, cols int) *screen { return &screen{t: t, cols: cols} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := []rune(string(p)); len(r) > 0; {
		r = s.step(r)
	}
	return len(p), nil
}

func (s *screen) step(r []rune) []rune {
	switch r[0] {
	case '\r':
		s.x = 0
	case '\n':
		s.y++
	case '\x1b':
		return s.escape(r)
	default:
		if s.x == s.cols {
			s.y, s.x = s.y+1, 0
		}
		s.grow()
		line := s.rows[s.y]
		for len(line) <= s.x {
			line = append(line, ' ')
		}
		line[s.x] = r[0]
		s.rows[s.y] = line
		s.x++
	}
	return r[1:]
}

func (s *screen) escape(r []rune) []rune {
	n, i := 0, 2
	for ; i < len(r) && r[i] >= '0' && r[i] <= '9'; i++ {
		n = n*10 + int(r[i]-'0')
	}
	switch {
	case r[1] == '[' && r[i] == 'A':
		if s.y -= n; s.y < 0 {
			s.t.Errorf("the cursor moves above what was drawn, by %d lines", -s.y)
			s.y = 0
		}
	case r[1] == '[' && r[i] == 'J':
		s.grow()
		s.rows = s.rows[:s.y+1]
		s.rows[s.y] = s.rows[s.y][:min(s.x, len(s.rows[s.y]))]
	default:
		s.t.Errorf("unknown escape sequence %q", string(r[:min(len(r), 8)]))
	}
	return r[i+1:]
}

func (s *screen) grow() {
	for len(s.rows) <= s.y {
		s.rows = append(s.rows, nil)
	}
}

// lines is what the screen shows, without empty lines at its end.
func (s *screen) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []string
	for _, r := range s.rows {
		l = append(l, strings.TrimRight(string(r), " "))
	}
	for len(l) > 0 && l[len(l)-1] == "" {
		l = l[:len(l)-1]
	}
	return l
}
