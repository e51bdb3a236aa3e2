package progress

import (
	"fmt"
	"strings"
	"time"
)

const spinner = `|/-\`

// line is one frame of a step, at most cols wide: spinner, name, and what is
// known: a bar, how much of how much, the rate, the time.
func (k *terminalTask) line(cols, frame int, now time.Time) string {
	head := string(spinner[frame%len(spinner)]) + " "
	took := FormatDuration(now.Sub(k.start).Truncate(100 * time.Millisecond))
	if k.bytes == 0 && k.total == 0 {
		return layOut(cols, head, k.name, took)
	}
	amount := FormatBytes(k.bytes)
	if k.total > 0 {
		amount += " of " + FormatBytes(k.total)
	}
	tail := amount + "  " + took
	if r := k.rate.update(k.bytes, now); r > 0 {
		tail = fmt.Sprintf("%s  %s/s  %s", amount, FormatBytes(int64(r)), took)
	}
	// A bar only where there is a whole, and room for it.
	room := cols - width(head) - width(k.name) - width(tail) - len("  []  ")
	if k.total > 0 && room >= minNameWidth {
		tail = bar(min(room, maxBarWidth), k.bytes, k.total) + "  " + tail
	}
	return layOut(cols, head, k.name, tail)
}

// layOut puts the tail behind the name and shortens the name, then the tail,
// when there is no room for both.
func layOut(cols int, head, name, tail string) string {
	const gap = "  "
	room := cols - width(head) - len(gap) - width(tail)
	if room < minNameWidth {
		return fit(head+name, cols)
	}
	return head + fit(name, room) + gap + tail
}

// bar draws done of total into n columns between brackets. A server may send
// more than it said.
func bar(n int, done, total int64) string {
	full := int(float64(n) * min(1, float64(done)/float64(total)))
	s := strings.Repeat("=", full)
	if full < n {
		s += ">" + strings.Repeat(" ", n-full-1)
	}
	return "[" + s + "]"
}

// meter measures bytes per second, with less weight on what is longer ago.
type meter struct {
	at    time.Time
	bytes int64
	rate  float64
}

const (
	meterPeriod = 500 * time.Millisecond
	meterWeight = 0.3 // of the newest period
)

// update takes the count as it is now and returns the rate; 0 while it is not
// known.
func (m *meter) update(bytes int64, now time.Time) float64 {
	if took := now.Sub(m.at); took >= meterPeriod {
		r := float64(bytes-m.bytes) / took.Seconds()
		if m.rate == 0 {
			m.rate = r
		} else {
			m.rate += meterWeight * (r - m.rate)
		}
		m.at, m.bytes = now, bytes
	}
	return m.rate
}
