package qemu

import "fmt"

// version is QEMU's, as QMP says it.
type version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// loads reports whether a QEMU of this version loads what one of version w has
// saved. A release's corrections change nothing of that; another release has
// other boards and CPUs under the same names.
func (v version) loads(w version) bool { return v.Major == w.Major && v.Minor == w.Minor }

// readOnlyFiles reports whether QEMU maps a file privately that it opens only
// for reading (rom=off, since 8.2).
func (v version) readOnlyFiles() bool { return v.Major > 8 || (v.Major == 8 && v.Minor >= 2) }
