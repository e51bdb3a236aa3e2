package agent

import (
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// Values of the kernel command line's parameters.
const (
	channelSerial = "serial"
	planMMDS      = "mmds"
	initSystemd   = "systemd"
)

// params is what the kernel command line says to the agent. What is missing
// stays empty and means vsock, the channel, and the agent as process 1.
type params struct {
	channel, plan, init string
}

func parseParams(cmdline string) params {
	var p params
	for _, f := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case agentapi.ParamChannel:
			p.channel = value
		case agentapi.ParamPlan:
			p.plan = value
		case agentapi.ParamInit:
			p.init = value
		}
	}
	return p
}
