package vmmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm/vmmtest/testapi"
)

// testLife is one machine's life from boot to power-off.
func (s *suite) testLife(t *testing.T) {
	r := s.boot(t, s.config(t))
	t.Run("Machine", r.testMachine)
	t.Run("Disks", r.testDisks)
	t.Run("Connections", r.testConnections)
	t.Run("Data", r.testData)
	t.Run("Clock", r.testClock)
	t.Run("Pause", r.testPause)
	t.Run("PowerOff", r.testPowerOff)
}

// testMachine compares what the guest sees with what was configured.
func (r *running) testMachine(t *testing.T) {
	var m testapi.Machine
	r.mustCall(t, http.MethodGet, testapi.PathMachine, nil, &m)
	if m.CPUs != r.cfg.CPUs {
		t.Errorf("%d CPUs, configured are %d", m.CPUs, r.cfg.CPUs)
	}
	// The kernel keeps some for itself.
	if m.MemoryMiB > r.cfg.MemoryMiB || m.MemoryMiB < r.cfg.MemoryMiB*3/4 {
		t.Errorf("%d MiB of memory, configured are %d", m.MemoryMiB, r.cfg.MemoryMiB)
	}
	if m.MAC != "" {
		t.Errorf("a network interface (%s) that was not configured", m.MAC)
	}
	if len(m.Disks) != len(r.cfg.Disks) {
		t.Fatalf("%d disks, configured are %d", len(m.Disks), len(r.cfg.Disks))
	}
	for i, d := range r.cfg.Disks {
		if !strings.HasPrefix(m.Disks[i], d.ID+"\x00") {
			t.Errorf("disk %d starts with %.16q, not with %q", i, m.Disks[i], d.ID)
		}
	}
}

func (r *running) testDisks(t *testing.T) {
	data := bytes.Repeat([]byte("written"), testapi.HeadSize/7+1)[:testapi.HeadSize]
	r.mustCall(t, http.MethodPut, testapi.PathDisk+"?disk=vdb", data, nil)
	f, err := os.Open(filepath.Join(r.cfg.Dir, r.cfg.Disks[1].Path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	got := make([]byte, testapi.HeadSize)
	if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("what the guest wrote is not in the disk's file: %.16q, %v", got, err)
	}
	if err := r.call(t.Context(), http.MethodPut, testapi.PathDisk+"?disk=vda", data, nil); err == nil {
		t.Error("the guest could write to a read-only disk")
	}
}

// testConnections has several open at once, each of them answered.
func (r *running) testConnections(t *testing.T) {
	const n = 8
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all sync.WaitGroup
	open := make(chan struct{})
	for range n {
		pr, pw := io.Pipe()
		answered := make(chan struct{})
		all.Go(func() {
			<-answered
			<-open // until all are
			_ = pw.Close()
		})
		all.Go(func() {
			defer close(answered)
			resp, err := r.post(ctx, pr)
			if err != nil {
				t.Error(err)
				return
			}
			all.Go(func() {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			})
		})
	}
	// With all of them open, one more is answered.
	if _, err := r.agent.Status(ctx); err != nil {
		t.Error(err)
	}
	close(open)
	all.Wait()
}

// testData sends megabytes in both directions at once.
func (r *running) testData(t *testing.T) {
	const size = 8 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	began := time.Now()
	resp, err := r.post(ctx, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, resp.Body)
	if err != nil || n != size || !bytes.Equal(sum.Sum(nil), sha256Of(data)) {
		t.Fatalf("%d of %d bytes came back, or others: %v", n, size, err)
	}
	t.Logf("%d MiB there and back in %s", size>>20, time.Since(began).Round(time.Millisecond))
}

func sha256Of(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// post starts an echo. The answer's header comes before the body has ended.
func (r *running) post(ctx context.Context, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guest"+testapi.PathEcho, body)
	if err != nil {
		return nil, err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("echo: %s", resp.Status)
	}
	return resp, nil
}

// testClock compares the guest's clock with the host's over a while.
func (r *running) testClock(t *testing.T) {
	const (
		while     = 1500 * time.Millisecond
		tolerance = 0.05
	)
	type reading struct {
		before, after time.Time // on the host
		guest         float64   // seconds
	}
	read := func() reading {
		x := reading{before: time.Now()}
		st, err := r.agent.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		x.guest, x.after = st.Uptime, time.Now()
		return x
	}
	first := read()
	time.Sleep(while)
	second := read()
	passed := second.guest - first.guest
	least, most := second.before.Sub(first.after).Seconds(), second.after.Sub(first.before).Seconds()
	if passed < least*(1-tolerance) || passed > most*(1+tolerance) {
		t.Errorf("%.2f s of the guest's time in %.2f to %.2f s", passed, least, most)
	}
}

// testPause looks at a counter of the guest's, which stands still in a pause.
func (r *running) testPause(t *testing.T) {
	const (
		pause   = 2 * time.Second
		perTick = 5 * time.Millisecond // of the guest's counter
	)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	before := r.ticks(t)
	if err := r.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	short, cancelShort := context.WithTimeout(ctx, pause)
	defer cancelShort()
	if err := r.call(short, http.MethodGet, testapi.PathTicks, nil, nil); err == nil {
		t.Error("a paused guest answers")
	}
	<-short.Done()
	if err := r.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	after := r.ticks(t)
	if n := after - before; n > int64(pause/perTick)/2 {
		t.Errorf("the guest counted to %d in a pause of %s", n, pause)
	}
	for r.ticks(t) == after {
		if ctx.Err() != nil {
			t.Fatal("the guest does not go on after the pause")
		}
	}
}

func (r *running) ticks(t *testing.T) int64 {
	t.Helper()
	var n int64
	r.mustCall(t, http.MethodGet, testapi.PathTicks, nil, &n)
	return n
}

func (r *running) testPowerOff(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.agent.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	e := r.waitEnd(t, patience)
	if e.Code != 0 || e.Signal != 0 || e.Reason != "the guest powered off" {
		t.Errorf("a guest that powered off ended as %+v", e)
	}
	if _, err := r.Dial(ctx); err == nil {
		t.Error("Dial succeeds after the end")
	}
	if err := r.Pause(ctx); err == nil {
		t.Error("Pause succeeds after the end")
	}
}
