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
		RequireExplicitExec: true,
	})
}
