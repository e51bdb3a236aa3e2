package supervisor

import (
	"testing"
	"time"
)

// Phases add up to the time that has gone by, also those that are parts of others.
func TestPhasesAddUp(t *testing.T) {
	const nap = 20 * time.Millisecond
	var w stopwatch
	began := time.Now()
	outer := w.phase("outer")
	for range 2 {
		inner := w.phase("inner")
		time.Sleep(nap)
		inner()
	}
	time.Sleep(nap)
	outer()
	w.phase("next")()
	whole := time.Since(began)
	var names []string
	var sum time.Duration
	for _, p := range w.phases {
		names, sum = append(names, p.Name), sum+p.Duration
		if p.Duration < 0 || p.Name != "next" && p.Duration < nap {
			t.Errorf("%s took %s", p.Name, p.Duration)
		}
	}
	if len(names) != 4 || names[2] != "outer" || sum > whole || sum < 3*nap {
		t.Errorf("%q, %s in all, of %s", names, sum, whole)
	}
}
