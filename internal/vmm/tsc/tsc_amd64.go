package tsc

import (
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the CPU's time stamp counter.
func rdtsc() uint64

const (
	clocksources = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
	sample       = 5 * time.Millisecond
)

// KHz measures the counter, in a few milliseconds. It returns 0 where the
// host's kernel does not find the counter fit for a clock: then a guest's had
// better not use it either.
func KHz() int {
	b, err := os.ReadFile(clocksources)
	if err != nil || !slices.Contains(strings.Fields(string(b)), "tsc") {
		return 0
	}
	ns0, count0 := read()
	time.Sleep(sample)
	ns1, count1 := read()
	if ns1 <= ns0 || count1 <= count0 {
		return 0
	}
	return int((count1 - count0) * 1_000_000 / uint64(ns1-ns0))
}

// read reads clock and counter at the same time: of a few tries, the one
// that was interrupted least.
func read() (ns int64, count uint64) {
	shortest := uint64(1<<64 - 1)
	for range 5 {
		var ts unix.Timespec
		before := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
			return 0, 0
		}
		after := rdtsc()
		if after-before < shortest {
			shortest = after - before
			ns, count = ts.Nano(), before+shortest/2
		}
	}
	return ns, count
}
