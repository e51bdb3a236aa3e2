package share

import (
	"bytes"
	"encoding/gob"
	"os"
	"os/exec"
	"testing"

	"github.com/fcvm/fcvm/test/posix"
)

// posixDir is where a test process of its own tries a file system: one that
// maps files of a share must not be the one that serves it, for while a thread
// waits for a page, Go's garbage collector waits for the thread.
const posixDir = "FCVM_TEST_POSIX_DIR"

// failedCase is a posix.Failed as it is sent to the test.
type failedCase struct{ Name, Err string }

// What a share cannot do is known, and told to users (README.md).
func TestPOSIX(t *testing.T) {
	if dir := os.Getenv(posixDir); dir != "" {
		var failed []failedCase
		for _, f := range posix.Run(dir) {
			failed = append(failed, failedCase{f.Name, f.Err.Error()})
		}
		if err := gob.NewEncoder(os.Stderr).Encode(failed); err != nil {
			t.Fatal(err)
		}
		return
	}
	m := mount(t, t.TempDir(), Options{})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPOSIX$")
	cmd.Env = append(os.Environ(), posixDir+"="+m.guest)
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	var failed []failedCase
	if err := gob.NewDecoder(&out).Decode(&failed); err != nil {
		t.Fatal(err)
	}
	lack := map[string]bool{}
	for _, name := range posix.SharesLack() {
		lack[name] = true
	}
	for _, f := range failed {
		if !lack[f.Name] {
			t.Errorf("%s: %s", f.Name, f.Err)
		}
		delete(lack, f.Name)
	}
	for name := range lack {
		t.Errorf("%s: it works, and is said not to", name)
	}
}
