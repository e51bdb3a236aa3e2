package setup

import (
	"fmt"
	"os"
	"path/filepath"
)

// ArtifactsOf returns a kernel and a guest root by their ids, which need not be
// the ones that new VMs take. There is no initramfs among them. An error that
// wraps ErrNotSetUp names what is missing.
func (s *Setup) ArtifactsOf(kernelID, rootID string) (*Artifacts, error) {
	a := &Artifacts{KernelID: kernelID, RootID: rootID}
	for _, part := range []struct {
		what, id, dir, file string
		path                *string
	}{
		{"kernel", kernelID, s.layout.Kernels(), kernelFileName, &a.Kernel},
		{"guest root", rootID, s.layout.Roots(), rootFileName, &a.Root},
	} {
		if !isID(part.id) {
			return nil, fmt.Errorf("%w: %q is no %s", ErrNotSetUp, part.id, part.what)
		}
		*part.path = filepath.Join(part.dir, part.id, part.file)
		if _, err := os.Stat(*part.path); err != nil {
			return nil, fmt.Errorf("%w: the %s %s is missing: %w", ErrNotSetUp, part.what, part.id, err)
		}
	}
	return a, nil
}
