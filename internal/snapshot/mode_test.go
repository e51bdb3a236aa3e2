package snapshot

import (
	"os"
	"path/filepath"
	"testing"
)

// Nobody may change a file of a snapshot, but QEMU before 8.2 has to be able to
// open the memory for writing, as whatever user.
func TestModes(t *testing.T) {
	snap := take(t, New(t.TempDir()), "x")
	defer snap.Release()
	for name, want := range map[string]os.FileMode{MemoryName: 0o600, StateName: 0o400} {
		st, err := os.Stat(filepath.Join(filepath.Dir(snap.Memory()), name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s: mode %v, not %v", name, st.Mode(), want)
		}
	}
}
