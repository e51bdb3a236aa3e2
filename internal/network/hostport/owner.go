package hostport

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/network"
)

// portOwner names the process that has a port, as "nginx (process 12)", as
// far as /proc tells: other users' processes are only visible to root. Empty
// when it does not.
func portOwner(proc string, p network.Port) string {
	// A socket of IPv6 may have a port of IPv4 too, but not the other way round.
	inodes := make(map[string]bool)
	for _, suffix := range []string{"", "6"} {
		if p.HostIP.Is6() && suffix == "" || len(inodes) > 0 {
			continue
		}
		for _, inode := range boundSockets(filepath.Join(proc, "net", p.Protocol+suffix), p) {
			inodes["socket:["+inode+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return ""
	}
	links, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(link))
		pid := filepath.Base(dir)
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			return "process " + pid
		}
		// A process chooses its name itself.
		return fmt.Sprintf("%s (process %s)", strings.Trim(strconv.Quote(strings.TrimSpace(string(comm))), `"`), pid)
	}
	return ""
}

// boundSockets returns the inodes of the sockets in one of the tables of
// /proc/net (proc(5)) that listen on a port, or are bound to it without a
// peer.
func boundSockets(table string, p network.Port) []string {
	b, err := os.ReadFile(table)
	if err != nil {
		return nil
	}
	var inodes []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		_, port, _ := strings.Cut(f[1], ":")
		_, peer, _ := strings.Cut(f[2], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		if err == nil && uint16(n) == p.HostPort && peer == "0000" {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}
