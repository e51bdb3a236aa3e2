package agentapi

// ParamGuest in the query of PathProcs asks for the guest's processes.
const ParamGuest = "guest"

// Stats is what a guest says it uses. Bytes and seconds are since its start.
type Stats struct {
	CPUs            int     `json:"cpus"`
	CPUSeconds      float64 `json:"cpu_seconds"`      // of all CPUs, idle time left out
	Uptime          float64 `json:"uptime"`           // seconds
	MemoryTotal     int64   `json:"memory_total"`     // bytes that the kernel manages
	MemoryAvailable int64   `json:"memory_available"` // bytes that could be used without swapping
	NetReceived     int64   `json:"net_received"`     // bytes, all interfaces but loopback
	NetSent         int64   `json:"net_sent"`
	DiskRead        int64   `json:"disk_read"` // bytes, all disks
	DiskWritten     int64   `json:"disk_written"`
	Processes       int     `json:"processes"` // of the container
}

// Processes are those of the container, or of the guest around it.
type Processes struct {
	Processes []Process `json:"processes"` // MaxProcesses at most, oldest first
	Total     int       `json:"total"`
}

// Process is one of them.
type Process struct {
	PID        int     `json:"pid"`         // in the container, or in the guest
	Parent     int     `json:"parent"`      // as above; 0: outside
	UID        uint32  `json:"uid"`         //
	State      string  `json:"state"`       // one letter, proc_pid_stat(5)
	Age        float64 `json:"age"`         // seconds
	CPUSeconds float64 `json:"cpu_seconds"` //
	Resident   int64   `json:"resident"`    // bytes of memory, shared ones too
	Command    string  `json:"command"`     // its arguments, or its name in brackets
}
