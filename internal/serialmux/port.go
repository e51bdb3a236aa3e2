package serialmux

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// OpenPort returns a function that opens the guest's virtio-serial port of
// this name. It looks in sysfs, since no udev has made links yet. Reading a
// port that no host has opened ends at once with io.EOF.
func OpenPort(name string) func() (io.ReadWriteCloser, error) {
	return func() (io.ReadWriteCloser, error) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == name {
				// The descriptor is made non-blocking and polled by the
				// runtime, so that Close ends a Read.
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		return nil, fmt.Errorf("open agent channel: no virtio-serial port %q: %w", name, os.ErrNotExist)
	}
}
