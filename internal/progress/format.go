package progress

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// FormatBytes writes a size in binary units with one decimal: "53.1 MiB".
func FormatBytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit && i < len("KMGTPE")-1; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[i])
}

// FormatDuration writes a duration as short as a person reads it: "40ms",
// "2.1s", "3m05s".
func FormatDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 100*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 100*time.Minute:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return d.Round(time.Minute).String()
}

// clean takes out what would move the cursor or end the line: names and notes
// may hold what a server or an archive said.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// width is how many columns s takes on a terminal. East Asian characters,
// which take two, begin at U+1100; that all from there on count as two makes
// some lines shorter than they need be, never longer.
func width(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

func runeWidth(r rune) int {
	const firstWide = 0x1100
	if r >= firstWide {
		return 2
	}
	return 1
}

// fit cuts s to at most cols columns; what is cut is marked with "~".
func fit(s string, cols int) string {
	if cols <= 0 {
		return ""
	}
	if width(s) <= cols {
		return s
	}
	n := 0
	for i, r := range s {
		if n += runeWidth(r); n > cols-1 {
			return s[:i] + "~"
		}
	}
	return s
}
