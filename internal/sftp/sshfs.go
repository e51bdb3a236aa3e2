package sftp

import (
	"bytes"
	"os"
)

// allLinks has sshfs leave links as they are: where they lead is the container's
// business. Releases from June 2026 on refuse those that are absolute or hold
// ".." (CVE-2026-47187) unless they are told; older ones do not know the option,
// and refuse what they do not know.
const allLinks = "no_contain_symlinks"

// Sshfs returns arguments of sshfs(1), version 3, that mount what is reached by
// its standard input and output; the directory to mount it at comes behind them.
// It stays in the foreground. program is its path.
//
// A change on the host is to be seen within a second: sshfs keeps attributes to
// the end of the second in which it has got them (a timeout of 0), the kernel
// keeps none. What is read is kept by the kernel until the file is opened again,
// or its time or size is seen to have changed.
func Sshfs(program string, readOnly bool) []string {
	o := "passive,allow_other,default_permissions,nodev,dcache_timeout=0,attr_timeout=0,entry_timeout=0,negative_timeout=0"
	if b, err := os.ReadFile(program); err == nil && bytes.Contains(b, []byte(allLinks)) {
		o += "," + allLinks
	}
	if readOnly {
		o += ",ro"
	}
	return []string{"-f", "-o", o, "share:/"}
}
