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
		what, id, file string
		path           *string
	}{
		{"kernel", kernelID, s.kernelFile(kernelID), &a.Kernel},
		{"guest root", rootID, s.rootFile(rootID), &a.Root},
	} {
		if !isID(part.id) {
			return nil, fmt.Errorf("%w: %q is no %s", ErrNotSetUp, part.id, part.what)
		}
		*part.path = part.file
		if _, err := os.Stat(*part.path); err != nil {
			return nil, fmt.Errorf("%w: the %s %s is missing (where it is, fcvm snapshot export --with-guest brings it along): %w",
				ErrNotSetUp, part.what, part.id, err)
		}
	}
	return a, nil
}

// HasKernel reports whether the kernel with an id is here.
func (s *Setup) HasKernel(id string) bool { return has(id, s.kernelFile(id)) }

// HasRoot reports whether the guest root with an id is here.
func (s *Setup) HasRoot(id string) bool { return has(id, s.rootFile(id)) }

func has(id, file string) bool {
	_, err := os.Stat(file)
	return isID(id) && err == nil
}

func (s *Setup) kernelFile(id string) string {
	return filepath.Join(s.layout.Kernels(), id, kernelFileName)
}

func (s *Setup) rootFile(id string) string {
	return filepath.Join(s.layout.Roots(), id, rootFileName)
}
