package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

// fakeVM answers with what a test wants, and remembers what it was asked.
type fakeVM struct {
	err     error
	updated UpdateRequest
	renamed string

	snapshot  SnapshotRequest
	published []string
	unpublish bool
}

func (f *fakeVM) DialAgent(context.Context) (net.Conn, error)     { return nil, f.err }
func (f *fakeVM) Stop(context.Context, time.Duration) error       { return f.err }
func (f *fakeVM) Kill(context.Context, int) error                 { return f.err }
func (f *fakeVM) Pause(context.Context) error                     { return f.err }
func (f *fakeVM) Resume(context.Context) error                    { return f.err }
func (f *fakeVM) Rename(_ context.Context, n string) error        { f.renamed = n; return f.err }
func (f *fakeVM) Update(_ context.Context, u UpdateRequest) error { f.updated = u; return f.err }
func (f *fakeVM) Publish(_ context.Context, ports []string, remove bool) ([]string, error) {
	f.published, f.unpublish = ports, remove
	return []string{"127.0.0.1:8080->80/tcp"}, f.err
}

func (f *fakeVM) Snapshot(_ context.Context, q SnapshotRequest) (Snapshotted, error) {
	f.snapshot = q
	return Snapshotted{ID: "0123456789ab", Name: q.Name, Pause: time.Second}, f.err
}

func (f *fakeVM) Wait(context.Context) (Ended, error) { return Ended{ExitCode: 7, Reason: "x"}, f.err }
func (f *fakeVM) WaitReady(context.Context) error     { return f.err }

func serve(t *testing.T, v VM) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "vm.sock")
	s, err := Listen(path, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := New(path, never).Pause(context.Background()); !errors.Is(err, ErrGone) {
			t.Errorf("after the end: %v", err)
		}
	})
	return New(path, never)
}

func never() bool  { return false }
func always() bool { return true }

// A supervisor that lives, and does not serve its socket yet, is waited for; one
// that has ended meanwhile is not.
func TestClientWaitsForTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm.sock")
	served := make(chan error, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		s, err := Listen(path, &fakeVM{})
		served <- err
		if err == nil {
			t.Cleanup(func() { _ = s.Close(context.Background()) })
		}
	}()
	if err := New(path, always).Pause(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	asked := 0
	gone := New(path+"2", func() bool { asked++; return asked < 5 })
	if err := gone.Pause(t.Context()); !errors.Is(err, ErrGone) || asked != 5 {
		t.Errorf("of one that has ended meanwhile: %v, after %d looks", err, asked)
	}
}

func TestUpdate(t *testing.T) {
	f := &fakeVM{}
	c := serve(t, f)
	mib := 256
	if err := c.Update(t.Context(), UpdateRequest{BalloonMiB: &mib}); err != nil {
		t.Fatal(err)
	}
	if f.updated.BalloonMiB == nil || *f.updated.BalloonMiB != mib {
		t.Errorf("asked for %d MiB, the VM was asked for %+v", mib, f.updated)
	}
	if err := c.Update(t.Context(), UpdateRequest{}); err != nil || f.updated.BalloonMiB != nil {
		t.Errorf("%+v, %v", f.updated, err)
	}
}

func TestPublish(t *testing.T) {
	f := &fakeVM{}
	c := serve(t, f)
	got, err := c.Publish(t.Context(), []string{"8080:80"}, true)
	if err != nil || !slices.Equal(got, []string{"127.0.0.1:8080->80/tcp"}) {
		t.Errorf("published %q, %v", got, err)
	}
	if !slices.Equal(f.published, []string{"8080:80"}) || !f.unpublish {
		t.Errorf("the VM was asked for %q, remove %t", f.published, f.unpublish)
	}
}

func TestSnapshot(t *testing.T) {
	f := &fakeVM{}
	c := serve(t, f)
	q := SnapshotRequest{Name: "warm"}
	got, err := c.Snapshot(t.Context(), q)
	if err != nil || got != (Snapshotted{ID: "0123456789ab", Name: "warm", Pause: time.Second}) || f.snapshot != q {
		t.Errorf("%+v, %v; the VM was asked for %+v", got, err, f.snapshot)
	}
}

// An error arrives with its words, and as what it is.
func TestErrorsKeepTheirKind(t *testing.T) {
	f := &fakeVM{}
	c := serve(t, f)
	for _, kind := range []error{vm.ErrNotRunning, vm.ErrRunning, vm.ErrNameTaken, vm.ErrInvalid, vm.ErrPaused} {
		f.err = fmt.Errorf("%w: some words", kind)
		for name, call := range map[string]func() error{
			"update": func() error { return c.Update(t.Context(), UpdateRequest{}) },
			"rename": func() error { return c.Rename(t.Context(), "x") },
			"stop":   func() error { return c.Stop(t.Context(), 0) },
			"agent":  func() error { _, err := c.DialAgent(t.Context()); return err },
			"wait":   func() error { _, err := c.Wait(t.Context()); return err },
		} {
			if err := call(); !errors.Is(err, kind) || !strings.Contains(err.Error(), "some words") {
				t.Errorf("%s: %v, want %v", name, err, kind)
			}
		}
	}
}

// What is too large, or none of the protocol's, is refused.
func TestRequestsAreBounded(t *testing.T) {
	f := &fakeVM{}
	c := serve(t, f)
	if err := c.Rename(t.Context(), strings.Repeat("x", maxBody)); !errors.Is(err, vm.ErrInvalid) || f.renamed != "" {
		t.Errorf("a name of %d bytes: %v", maxBody, err)
	}
	if err := c.call(t.Context(), "POST", "/v1/fly", nil, nil); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("what the server does not know: %v", err)
	}
	if e, err := c.Wait(t.Context()); err != nil || e.ExitCode != 7 {
		t.Errorf("%+v, %v", e, err)
	}
}
