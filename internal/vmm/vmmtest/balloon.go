package vmmtest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest/testapi"
)

// testBalloon takes memory from the guest and gives it back. The host's price
// falls with the first, and rises again only when the guest uses it.
func (s *suite) testBalloon(t *testing.T) {
	const (
		size  = 96 // MiB
		slack = 32 // MiB: what guest and VMM do with their memory meanwhile
		limit = 10 * patience
	)
	r := s.boot(t, s.config(t))
	b, ok := r.Machine.(vmm.Ballooner)
	if !ok {
		t.Skip("this driver has no balloon")
	}
	touch := func() { // which takes a while where a guest of a guest is emulated
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := r.call(ctx, http.MethodPost, testapi.PathTouch, nil, nil); err != nil {
			t.Fatalf("%v\n%s", err, tails(r.cfg))
		}
	}
	touch()
	free, cost := r.freeMiB(t), r.pssMiB(t)
	set := func(mib int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := b.SetBalloon(ctx, mib); err != nil {
			t.Fatal(err)
		}
	}
	within := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(limit); !is(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the guest has %d MiB free, the host pays %d", what, r.freeMiB(t), r.pssMiB(t))
			}
		}
	}
	t.Logf("before: the guest has %d MiB free, the host pays %d", free, cost)
	set(size)
	within("inflated", func() bool { return r.freeMiB(t) <= free-size+slack && r.pssMiB(t) <= cost-size+slack })
	t.Logf("balloon of %d MiB: the guest has %d MiB free, the host pays %d", size, r.freeMiB(t), r.pssMiB(t))
	set(size) // once more
	set(0)
	within("deflated", func() bool { return r.freeMiB(t) >= free-slack })
	touch()
	within("used again", func() bool { return r.pssMiB(t) >= cost-slack })
	t.Logf("after: the guest has %d MiB free, the host pays %d", r.freeMiB(t), r.pssMiB(t))

	if err := r.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.SetBalloon(t.Context(), 0); err == nil {
		t.Error("SetBalloon succeeds after the end")
	}
}

func (r *running) freeMiB(t *testing.T) int {
	t.Helper()
	var n int
	r.mustCall(t, http.MethodGet, testapi.PathFree, nil, &n)
	return n
}

// pssMiB is what the host pays for the VMM and its guest.
func (r *running) pssMiB(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", r.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatal("no Pss in smaps_rollup")
	return 0
}
