package firecracker

import (
	"regexp"
	"strconv"
)

// release is what Firecracker answers when asked for its version.
type release struct {
	Version string `json:"firecracker_version"`
}

var releasePattern = regexp.MustCompile(`^(\d+)\.(\d+)\.`)

// before reports whether it is older than 1.minor. What is no version is
// older than any.
func (r release) before(minor int) bool {
	m := releasePattern.FindStringSubmatch(r.Version)
	if m == nil {
		return true
	}
	x, errX := strconv.Atoi(m[1])
	y, errY := strconv.Atoi(m[2])
	if errX != nil || errY != nil {
		return true
	}
	return x < 1 || (x == 1 && y < minor)
}
