package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// maxConfig bounds a container's OCI configuration, bytes.
const maxConfig = 16 << 20

// process is the "process" object of an OCI configuration: what the container's
// first one has (rlimits, no_new_privs, …) holds for the others as well.
// https://github.com/opencontainers/runtime-spec/blob/main/config.md#process
type process map[string]json.RawMessage

// capabilitySets are those of a process in an OCI configuration.
type capabilitySets struct {
	Bounding    []string `json:"bounding,omitempty"`
	Effective   []string `json:"effective,omitempty"`
	Permitted   []string `json:"permitted,omitempty"`
	Inheritable []string `json:"inheritable,omitempty"`
	Ambient     []string `json:"ambient,omitempty"`
}

type processUser struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Umask  *uint32  `json:"umask,omitempty"`
	Groups []uint32 `json:"additionalGids,omitempty"`
}

type consoleSize struct {
	Height uint16 `json:"height"`
	Width  uint16 `json:"width"`
}

// entryProcess is the process of a command in the container, made of the
// container's own as `podman exec` makes it.
func entryProcess(config string, root *tree, c agentapi.Container, req agentapi.ExecRequest) ([]byte, error) {
	p, err := readProcess(config)
	if err != nil {
		return nil, fmt.Errorf("read the container's configuration: %w", err)
	}
	user := req.User
	if user == "" {
		user = c.User
	}
	who, err := findUser(root, user)
	if err != nil {
		return nil, err
	}
	if err := p.become(who, req.Privileged, user == c.User); err != nil {
		return nil, err
	}
	if err := p.setEnv(c.Env, who.home, req.Env); err != nil {
		return nil, err
	}
	p.set("args", req.Args)
	p.set("terminal", req.TTY)
	if req.WorkDir != "" {
		p.set("cwd", req.WorkDir)
	}
	delete(p, "consoleSize")
	if req.TTY && req.Rows > 0 && req.Cols > 0 {
		p.set("consoleSize", consoleSize{Height: req.Rows, Width: req.Cols})
	}
	return json.Marshal(p)
}

// readProcess reads the process of the configuration that the runtime keeps.
func readProcess(config string) (process, error) {
	f, err := os.Open(config)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var doc struct {
		Process process `json:"process"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxConfig)).Decode(&doc); err != nil {
		return nil, err
	}
	if doc.Process == nil {
		return nil, fmt.Errorf("%s has no process", config)
	}
	return doc.Process, nil
}

// set is for values that can be encoded, which all are here.
func (p process) set(key string, v any) { p[key], _ = json.Marshal(v) }

func (p process) get(key string, v any) error {
	if raw, ok := p[key]; ok {
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("read %s of the container's process: %w", key, err)
		}
	}
	return nil
}

// become sets user and capabilities. Root has all that the container may have.
// Others have what the container's first process has if they are its user, and
// else none. Nothing is inheritable but what such a user keeps by it.
func (p process) become(who identity, privileged, sameUser bool) error {
	var user processUser
	if err := p.get("user", &user); err != nil {
		return err
	}
	p.set("user", processUser{UID: who.uid, GID: who.gid, Umask: user.Umask, Groups: who.groups})

	var own capabilitySets
	if err := p.get("capabilities", &own); err != nil {
		return err
	}
	caps := capabilitySets{Bounding: own.Bounding}
	if privileged {
		caps.Bounding = allCapabilities()
	}
	switch {
	case who.uid == 0:
		caps.Effective, caps.Permitted = caps.Bounding, caps.Bounding
	case sameUser:
		caps.Effective, caps.Permitted = own.Effective, own.Effective
		caps.Inheritable, caps.Ambient = own.Effective, own.Effective
	}
	p.set("capabilities", caps)
	return nil
}

// setEnv adds to the container's environment. HOME there is that of the
// container's user, unless the image or the person has set it.
func (p process) setEnv(given []string, home string, more []string) error {
	var env []string
	if err := p.get("env", &env); err != nil {
		return err
	}
	if !hasVariable(given, "HOME") {
		env = append(env, "HOME="+home)
	}
	p.set("env", lastOfEach(append(env, more...)))
	return nil
}

func hasVariable(env []string, name string) bool {
	for _, kv := range env {
		if strings.HasPrefix(kv, name+"=") {
			return true
		}
	}
	return false
}

// lastOfEach keeps the last value of each variable, in the order in which they
// first came.
func lastOfEach(env []string) []string {
	var kept []string
	index := map[string]int{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := index[name]; ok {
			kept[i] = kv
			continue
		}
		index[name] = len(kept)
		kept = append(kept, kv)
	}
	return kept
}

// allCapabilities are those that this kernel knows (capabilities(7)).
func allCapabilities() []string {
	names := strings.Fields(`
		CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
		NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE
		SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
		AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
		CHECKPOINT_RESTORE`)
	last, err := strconv.Atoi(strings.TrimSpace(readFile("/proc/sys/kernel/cap_last_cap")))
	if err == nil && last+1 < len(names) {
		names = names[:last+1]
	}
	for i, n := range names {
		names[i] = "CAP_" + n
	}
	return names
}
