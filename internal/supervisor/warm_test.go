package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vmm"
)

// endedGuest is a machine whose start is ended when it has been saved.
type endedGuest struct {
	flakyGuest
	end func()
}

func (g *endedGuest) Snapshot(ctx context.Context, to vmm.SnapshotFiles) error {
	defer g.end()
	return g.guest.Snapshot(ctx, to)
}

func (g *endedGuest) Kill(context.Context) error { return nil }

// A start that is ended while its guest is saved for the next one leaves nothing of
// that behind.
func TestAStartThatIsEndedKeepsNoGuest(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	in := newInstance(t, &endedGuest{flakyGuest: flakyGuest{guest: guest{pid: os.Getpid()}}, end: end})
	snapshots := t.TempDir()
	in.artifacts, in.Snapshots, in.warmKey = &setup.Artifacts{}, snapshot.New(snapshots), "key"
	in.agent = serveAgent(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(agentapi.Status{Version: agentapi.Version})
	})
	dir := string(in.vm.Dir())
	for _, name := range []string{paths.InitrdName, paths.ScratchName} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.keepWarm(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(snapshots, ".draft-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// warmDriver is one whose guests can be kept.
type warmDriver struct {
	pagesDriver
	vmm.Restorer
}

// noNet is no network.
type noNet struct{ network.Attachment }

func (noNet) Net() *vmm.Net { return nil }

// A start that is ended while it looks at a guest that was kept keeps it for the next
// one; one whose guest is damaged does not.
func TestAGuestIsKeptUnlessItIsDamaged(t *testing.T) {
	for name, ended := range map[string]bool{"ended": true, "damaged": false} {
		in := newInstance(t, guest{})
		in.driver, in.net, in.artifacts = warmDriver{}, noNet{}, &setup.Artifacts{}
		in.Snapshots = snapshot.New(t.TempDir())
		key, err := in.makeWarmKey()
		if err != nil {
			t.Fatal(err)
		}
		draft, err := in.Snapshots.Begin("", 0)
		if err != nil {
			t.Fatal(err)
		}
		files := []string{snapshot.MemoryName, snapshot.StateName}
		for _, f := range files {
			if err := os.WriteFile(draft.Path(f), []byte(f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		snap, err := draft.Commit(t.Context(), snapshot.Manifest{Key: key, Guest: snapshot.GuestUp, Spec: in.vm.Record().Spec}, files)
		if err != nil {
			t.Fatal(err)
		}
		snap.Release()
		ctx, end := context.WithCancel(t.Context())
		defer end()
		now := time.Now()
		if ended { // it is to be read
			err = os.Chtimes(snap.Memory(), now, now)
			end()
		} else {
			err = os.WriteFile(snap.Memory(), []byte("broken"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := in.findWarm(ctx); (err != nil) != ended || in.from != nil {
			t.Errorf("%s: %v, from %v", name, err, in.from)
		}
		if _, kept := in.Snapshots.FindKey(key); kept != ended {
			t.Errorf("%s: kept: %t", name, kept)
		}
	}
}
