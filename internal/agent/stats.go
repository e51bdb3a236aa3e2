package agent

import (
	"net/http"
	"runtime"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// getStats says what the guest uses.
func (a *agent) getStats(w http.ResponseWriter, _ *http.Request) {
	st := agentapi.Stats{CPUs: runtime.NumCPU(), Uptime: uptime()}
	st.CPUSeconds = parseCPU(readFile("/proc/stat"))
	st.MemoryTotal, st.MemoryAvailable = parseMemory(readFile("/proc/meminfo"))
	st.NetReceived, st.NetSent = parseNet(readFile("/proc/net/dev"))
	st.DiskRead, st.DiskWritten = parseDisks(readFile("/proc/diskstats"))
	if procs, err := a.processes(false); err == nil {
		st.Processes = len(procs)
	}
	reply(w, http.StatusOK, st)
}

// parseCPU adds up the busy times of all CPUs, from proc_stat(5), seconds. What
// guests of the guest use is within user and nice.
func parseCPU(stat string) float64 {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0
	}
	const userHZ = 100
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		ticks += number(fields[i])
	}
	return float64(ticks) / userHZ
}

// parseMemory reads proc_meminfo(5), bytes.
func parseMemory(info string) (total, available int64) {
	for line := range strings.Lines(info) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			total = number(fields[1]) << 10
		case "MemAvailable:":
			available = number(fields[1]) << 10
		}
	}
	return total, available
}

// parseNet reads proc_pid_net(5), /proc/net/dev, bytes.
func parseNet(dev string) (received, sent int64) {
	for line := range strings.Lines(dev) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		received += number(fields[0])
		sent += number(fields[8])
	}
	return received, sent
}

// parseDisks reads /proc/diskstats of the guest's own disks, whole ones
// (https://docs.kernel.org/admin-guide/iostats.html), bytes.
func parseDisks(stats string) (read, written int64) {
	const sector = 512
	for line := range strings.Lines(stats) {
		fields := strings.Fields(line)
		if len(fields) < 10 || !strings.HasPrefix(fields[2], "vd") || strings.ContainsAny(fields[2], "0123456789") {
			continue
		}
		read += number(fields[5]) * sector
		written += number(fields[9]) * sector
	}
	return read, written
}

// number is for what the kernel writes.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
