package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// modules are kernel modules in load order: paths below /lib/modules.
type modules []*os.File

// readModules opens the modules of a list, so that they can be loaded after
// the initramfs is out of sight. A kernel that has all built in has no list.
func readModules(list string) (modules, error) {
	b, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of modules: %w", err)
	}
	var ms modules
	for _, name := range strings.Fields(string(b)) {
		f, err := os.Open(filepath.Join(filepath.Dir(list), name))
		if err != nil {
			return nil, fmt.Errorf("load module: %w", err)
		}
		ms = append(ms, f)
	}
	return ms, nil
}

// load loads all modules that can be loaded, in order, and closes their files.
func (ms modules) load() error {
	var errs []error
	for _, f := range ms {
		err := unix.FinitModule(int(f.Fd()), "", 0)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("load module %s: %w", f.Name(), err))
		}
		_ = f.Close()
	}
	return errors.Join(errs...)
}

// alwaysModules are there in every guest, so that the host can take memory
// back whenever it wants to, and a guest that was cloned can reset connections.
// Besides one another they need nothing that is not loaded first.
var alwaysModules = []string{"virtio_balloon.ko", "inet_diag.ko", "tcp_diag.ko"}

// fuseModule is for guests with shares. It needs no other.
const fuseModule = "fuse.ko"

// loadNow loads these of the modules that wait. A kernel may have them built
// in.
func (a *agent) loadNow(names ...string) error {
	var now, later modules
	for _, f := range a.extra {
		if slices.Contains(names, filepath.Base(f.Name())) {
			now = append(now, f)
		} else {
			later = append(later, f)
		}
	}
	a.extra = later
	return now.load()
}

func loadModules(list string) error {
	ms, err := readModules(list)
	if err != nil {
		return err
	}
	return ms.load()
}

// loadExtra loads the modules for networks, tunnels and file systems of the
// guest's own, for a container that could use them. It is done before the
// container starts, never beside it: under emulation a kernel that patches
// itself while another of its CPUs is busy has been seen to hang and to crash.
func (a *agent) loadExtra(c *agentapi.Container) {
	if !c.Privileged && len(c.CapAdd) == 0 {
		return
	}
	if err := a.extra.load(); err != nil {
		a.log.Warn("load kernel modules", "error", err)
	}
	a.extra = nil
}
