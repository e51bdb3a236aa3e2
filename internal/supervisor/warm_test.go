package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/fcvm/fcvm/internal/agentapi"
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
