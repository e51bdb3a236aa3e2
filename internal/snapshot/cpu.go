package snapshot

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// maxCPUInfo bounds what is read of /proc/cpuinfo, bytes: one processor's part
// is enough.
const maxCPUInfo = 64 << 10

// HostCPU returns this host's processor, as the kernel tells of the first one.
func HostCPU() (CPU, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return CPU{}, fmt.Errorf("look at the CPU: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parseCPU(io.LimitReader(f, maxCPUInfo))
}

// parseCPU reads the first processor of proc_cpuinfo(5). What a guest may have
// come to depend on is which model it is and what it can do: the names of x86's
// fields and of arm64's.
func parseCPU(r io.Reader) (CPU, error) {
	var (
		c     CPU
		facts []string
		s     = bufio.NewScanner(r)
	)
	s.Buffer(nil, maxCPUInfo)
	for s.Scan() {
		key, value, ok := strings.Cut(s.Text(), ":")
		if !ok {
			if len(facts) > 0 {
				break // the next processor
			}
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch key {
		case "model name":
			c.Model = value
		case "flags", "Features":
			words := strings.Fields(value)
			slices.Sort(words)
			facts = append(facts, strings.Join(words, " "))
		case "vendor_id", "cpu family", "model", "stepping",
			"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision":
			facts = append(facts, key+"="+value)
			if c.Model == "" && key == "CPU part" {
				c.Model = "part " + value
			}
		}
	}
	if len(facts) == 0 {
		return CPU{}, errors.Join(errors.New("look at the CPU: /proc/cpuinfo says nothing of it"), s.Err())
	}
	sum := sha256.Sum256([]byte(strings.Join(facts, "\n")))
	c.Features = hex.EncodeToString(sum[:])
	return c, nil
}
