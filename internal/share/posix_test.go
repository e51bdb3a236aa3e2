package share

import (
	"testing"

	"github.com/fcvm/fcvm/test/posix"
)

// What a share cannot do is known, and told to users (README.md).
func TestPOSIX(t *testing.T) {
	m := mount(t, t.TempDir(), Options{})
	lack := map[string]bool{}
	for _, name := range posix.SharesLack() {
		lack[name] = true
	}
	for _, f := range posix.Run(m.guest) {
		if !lack[f.Name] {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
		delete(lack, f.Name)
	}
	for name := range lack {
		t.Errorf("%s: it works, and is said not to", name)
	}
}
