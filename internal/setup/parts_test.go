package setup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPartsThatAreReplacedCanBeRemoved(t *testing.T) {
	s := newTestSetup(t)
	const current, old, used = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"
	for _, id := range []string{current, old, used, workPrefix + "1", "notes"} {
		if err := os.MkdirAll(filepath.Join(s.layout.Kernels(), id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&Manifest{Schema: manifestSchema, Kernel: &Artifact{ID: current}}).write(s.layout.Setup()); err != nil {
		t.Fatal(err)
	}
	parts, err := s.Parts()
	if err != nil || len(parts) != 4 {
		t.Fatalf("%+v, %v", parts, err)
	}
	asked := 0
	for _, p := range parts {
		removed, err := s.Remove(t.Context(), p, func() (bool, error) { asked++; return p.ID == used, nil })
		if want := p.ID == old || p.Kind == PartLeftover; removed != want || err != nil {
			t.Errorf("%+v: removed %v, %v", p, removed, err)
		}
		if _, err := os.Stat(p.Path); errors.Is(err, fs.ErrNotExist) != removed {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times whether a part is used", asked)
	}
	left, _ := os.ReadDir(s.layout.Kernels())
	if len(left) != 3 {
		t.Errorf("left: %v", left)
	}
	gone := parts[slices.IndexFunc(parts, func(p Part) bool { return p.ID == old })]
	if removed, err := s.Remove(t.Context(), gone, nil); removed || err != nil {
		t.Errorf("what is gone: %v, %v", removed, err)
	}
}

// Without the manifest everything would look as if it had been replaced.
func TestPartsNeedTheManifest(t *testing.T) {
	s := newTestSetup(t)
	if err := os.MkdirAll(filepath.Join(s.layout.Kernels(), strings.Repeat("a", idLength)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.layout.Setup(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if parts, err := s.Parts(); !errors.Is(err, ErrManifest) || parts != nil {
		t.Errorf("%+v, %v", parts, err)
	}
}

func TestRemoveWaitsForVMsThatAreAboutToStart(t *testing.T) {
	s := newTestSetup(t)
	id := strings.Repeat("a", idLength)
	if err := os.MkdirAll(filepath.Join(s.layout.Kernels(), id), 0o700); err != nil {
		t.Fatal(err)
	}
	parts, err := s.Parts()
	if err != nil || len(parts) != 1 {
		t.Fatalf("%+v, %v", parts, err)
	}
	var holds []func()
	for range 2 { // many at a time
		release, err := s.Hold(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		holds = append(holds, release)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	unasked := func() (bool, error) { t.Error("asked too early"); return false, nil }
	if removed, err := s.Remove(ctx, parts[0], unasked); removed || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it may come into use: %v, %v", removed, err)
	}
	for _, release := range holds {
		release()
	}
	if removed, err := s.Remove(t.Context(), parts[0], func() (bool, error) { return false, nil }); !removed || err != nil {
		t.Errorf("%v, %v", removed, err)
	}
}
