package vmmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest/testapi"
)

// patternMiB is how much of the guest's memory is looked at, MiB.
const patternMiB = 8

// snapshot is a machine's state and what belongs to it.
type snapshot struct {
	vmm.SnapshotFiles
	scratch string // a copy of the writable disk
	cfg     vmm.Config
}

// snapshotFiles names files in a new directory.
func snapshotFiles(t *testing.T) vmm.SnapshotFiles {
	dir := t.TempDir()
	return vmm.SnapshotFiles{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
}

// snapshot saves a running machine, which goes on.
func (r *running) snapshot(t *testing.T) snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	s := snapshot{SnapshotFiles: snapshotFiles(t), cfg: r.cfg}
	s.scratch = filepath.Join(filepath.Dir(s.State), "scratch")
	began := time.Now()
	if err := r.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	paused := time.Now()
	if err := r.snapshotter(t).Snapshot(ctx, s.SnapshotFiles); err != nil {
		t.Fatalf("%v\n%s", err, tails(r.cfg))
	}
	saved := time.Now()
	copyFile(t, s.scratch, filepath.Join(r.cfg.Dir, r.cfg.Disks[1].Path))
	copied := time.Now()
	if err := r.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	resumed := time.Now()
	if err := r.snapshotter(t).FinishSnapshot(ctx, s.SnapshotFiles); err != nil {
		t.Fatal(err)
	}
	t.Logf("paused for %s: to pause took %s, to save %s, the disk %s, to resume %s; then to finish %s", ms(resumed.Sub(began)),
		ms(paused.Sub(began)), ms(saved.Sub(paused)), ms(copied.Sub(saved)), ms(resumed.Sub(copied)), ms(time.Since(resumed)))
	return s
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func (r *running) snapshotter(t *testing.T) vmm.Snapshotter {
	t.Helper()
	s, ok := r.Machine.(vmm.Snapshotter)
	if !ok {
		t.Fatal("the machine is no Snapshotter")
	}
	return s
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// configFor is a new configuration for a machine from a snapshot, with the disk
// in place.
func (s *suite) configFor(t *testing.T, snap snapshot) vmm.Config {
	t.Helper()
	cfg := s.config(t)
	cfg.CPUs, cfg.MemoryMiB, cfg.Net, cfg.Cmdline = snap.cfg.CPUs, snap.cfg.MemoryMiB, snap.cfg.Net, snap.cfg.Cmdline
	copyFile(t, filepath.Join(cfg.Dir, cfg.Disks[1].Path), snap.scratch)
	return cfg
}

// from is where the snapshot lies, for a machine that maps its memory.
func (s snapshot) from() vmm.RestoreFrom { return vmm.RestoreFrom{State: s.State, Memory: s.Memory} }

// restore starts a machine from a snapshot and waits for its agent.
func (s *suite) restore(t *testing.T, cfg vmm.Config, from vmm.RestoreFrom) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.caps.BootTimeout)
	defer cancel()
	var phases []string
	from.Phase = func(name string) func() {
		began := time.Now()
		return func() { phases = append(phases, fmt.Sprintf("%s %s", name, ms(time.Since(began)))) }
	}
	m, err := s.restorer(t).Restore(ctx, cfg, from)
	if err != nil {
		t.Fatalf("restore: %v\n%s", err, tails(cfg))
	}
	r := s.adopt(t, m, cfg)
	began := time.Now()
	if err := r.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	resumed := time.Now()
	if _, err := r.agent.WaitAgent(ctx); err != nil {
		t.Fatalf("wait for the agent: %v\n%s", err, tails(cfg))
	}
	t.Logf("restored: %s, resume %s, agent %s after that; the host pays %d MiB", strings.Join(phases, ", "), ms(resumed.Sub(began)), ms(time.Since(resumed)), r.pssMiB(t))
	return r
}

func (s *suite) restorer(t *testing.T) vmm.Restorer {
	t.Helper()
	d, ok := s.driver.(vmm.Restorer)
	if !ok {
		t.Fatal("the driver is no Restorer")
	}
	return d
}

// write makes a machine different from all others, in memory and on its disk.
func (r *running) write(t *testing.T, seed uint64) {
	t.Helper()
	b, err := json.Marshal(testapi.Pattern{Seed: seed, MiB: patternMiB})
	if err != nil {
		t.Fatal(err)
	}
	// In a guest of an emulated guest, each page that is written for the first
	// time takes a millisecond or more.
	r.mustCallWithin(t, 10*patience, http.MethodPut, testapi.PathPattern, b, nil)
	r.mustCall(t, http.MethodPut, testapi.PathDisk+"?disk=vdb", []byte(mark(seed)), nil)
}

func mark(seed uint64) string { return fmt.Sprintf("%-32d", seed) }

// check looks for what write has written, in the guest and in the disk's file.
func (r *running) check(t *testing.T, seed uint64) {
	t.Helper()
	var p testapi.Pattern
	r.mustCallWithin(t, 10*patience, http.MethodGet, testapi.PathPattern, nil, &p)
	if want := (testapi.Pattern{Seed: seed, MiB: patternMiB}); p != want {
		t.Errorf("in memory: %+v, not %+v", p, want)
	}
	var m testapi.Machine
	r.mustCall(t, http.MethodGet, testapi.PathMachine, nil, &m)
	if len(m.Disks) != 2 || !strings.HasPrefix(m.Disks[0], "root") || !strings.HasPrefix(m.Disks[1], mark(seed)) {
		t.Errorf("the guest's disks start with %.32q, not with %q", m.Disks, mark(seed))
	}
	f, err := os.Open(filepath.Join(r.cfg.Dir, r.cfg.Disks[1].Path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, len(mark(seed)))
	if _, err := io.ReadFull(f, head); err != nil || string(head) != mark(seed) {
		t.Errorf("the disk's file starts with %q (%v), not with %q", head, err, mark(seed))
	}
}

// testSnapshot saves a machine, which goes on as if nothing had been, and starts
// others from what was saved, all at once.
func (s *suite) testSnapshot(t *testing.T) {
	const saved, changed, clones = 1, 2, 3
	original := s.boot(t, s.config(t))
	original.write(t, saved)
	ticks := original.ticks(t)

	pr, pw := io.Pipe()
	resp, err := original.post(t.Context(), pr) // a connection that is open in the snapshot
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	snap := original.snapshot(t)
	checkHoles(t, snap.Memory, original.cfg.MemoryMiB)
	go func() {
		_, _ = io.WriteString(pw, "still here")
		_ = pw.Close()
	}()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "still here" {
		t.Errorf("a connection from before the snapshot: %q, %v", b, err)
	}
	original.write(t, changed)

	var all [clones]*running
	t.Run("Clones", func(t *testing.T) { // which run until the end of all
		for i := range clones {
			cfg := s.configFor(t, snap)
			all[i] = s.restore(t, cfg, snap.from())
			all[i].check(t, saved)
			if n := all[i].ticks(t); n < ticks {
				t.Errorf("the clone counted to %d, its original to %d before", n, ticks)
			}
			all[i].write(t, uint64(100+i))
		}
		for i := range clones {
			all[i].check(t, uint64(100+i))
		}
	})
	original.check(t, changed)
	// What the clones have written is not in what they were started from.
	last := s.restore(t, s.configFor(t, snap), snap.from())
	last.check(t, saved)
	t.Run("Clock", last.testClock)
	t.Run("Data", last.testData)
	t.Run("Pause", last.testPause)
	t.Run("PowerOff", last.testPowerOff)
}

// checkHoles looks at what a file of a guest takes up that has used little.
func checkHoles(t *testing.T, path string, mib int) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != int64(mib)<<20 {
		t.Errorf("the memory's file has %d bytes, the machine %d MiB", st.Size(), mib)
	}
	used := st.Sys().(*syscall.Stat_t).Blocks * 512 >> 20
	t.Logf("memory: %d MiB, of which %d are stored", st.Size()>>20, used)
	if used > int64(mib)*2/3 {
		t.Errorf("%d MiB of %d are stored: pages of zeros are no holes", used, mib)
	}
}

// testSnapshotAgain saves a machine that was restored itself, three
// generations down, which do and do not track what they write.
func (s *suite) testSnapshotAgain(t *testing.T) {
	r := s.boot(t, s.config(t))
	r.write(t, 1)
	for generation := uint64(2); generation <= 4; generation++ {
		snap := r.snapshot(t)
		r.close(t)
		from := snap.from()
		from.TrackDirty = generation%2 == 0
		r = s.restore(t, s.configFor(t, snap), from)
		// Nobody needs the parent's files but to map them.
		r.check(t, generation-1)
		r.write(t, generation)
		r.check(t, generation)
	}
	// And once more without a change, right away.
	snap := r.snapshot(t)
	again := s.restore(t, s.configFor(t, snap), snap.from()).snapshot(t)
	s.restore(t, s.configFor(t, again), again.from()).check(t, 4)
}

// testRestoreMany starts one machine after the other from a snapshot: whether
// the agent finds out that its host is another one is a matter of moments.
func (s *suite) testRestoreMany(t *testing.T) {
	const times = 20
	r := s.boot(t, s.config(t))
	r.write(t, 1)
	snap := r.snapshot(t)
	for range times {
		began := time.Now()
		c := s.restore(t, s.configFor(t, snap), snap.from())
		t.Logf("answers after %s", ms(time.Since(began)))
		c.close(t)
	}
}
