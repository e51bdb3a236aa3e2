// Package cli tries fcvm's command line as a shell sees it, in scripts, as far
// as no VM is needed.
package cli

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fcvm/fcvm/internal/cli"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fcvm": func() { os.Exit(cli.Main(context.Background(), cli.Process())) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("FCVM_DATA_DIR", filepath.Join(e.WorkDir, "data"))
			e.Setenv("FCVM_RUNTIME_DIR", filepath.Join(e.WorkDir, "run"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			return cond == "root" && os.Getuid() == 0, nil
		},
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"mksnapshot": makeSnapshot},
		RequireExplicitExec: true,
	})
}

// makeSnapshot is mksnapshot NAME DRIVER: a snapshot of a VM that never ran, with
// a MiB of memory.
func makeSnapshot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mksnapshot NAME DRIVER")
	}
	dir := paths.Layout{Data: ts.Getenv("FCVM_DATA_DIR")}.Snapshots()
	d, err := snapshot.New(dir).Begin(args[0], 0)
	ts.Check(err)
	ts.Check(os.WriteFile(d.Path(snapshot.MemoryName), make([]byte, 1<<20), 0o600))
	ts.Check(os.WriteFile(d.Path(snapshot.StateName), nil, 0o600))
	s, err := d.Commit(context.Background(), snapshot.Manifest{
		Needs: snapshot.Needs{Driver: args[1]}, Guest: snapshot.GuestRunning,
		Spec: vm.Spec{
			Image: "img", CPUs: 1, MemoryMiB: vm.MinMemoryMiB, Init: vm.InitAgent, Logs: vm.LogsFile,
			Restart: vm.Restart{Policy: vm.RestartNo}, Network: vm.NetworkSpec{Backend: "none", Mode: vm.ModeAuto},
		},
	}, []string{snapshot.MemoryName, snapshot.StateName})
	ts.Check(err)
	s.Release()
}
