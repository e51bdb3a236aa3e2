package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// envFlags hands the container's environment to Podman in a file, so that it
// shows in no process list and is not Podman's own. A value with a line break
// cannot be written in such a file and goes on the command line, inside the
// guest.
func envFlags(env []string) ([]string, error) {
	var file strings.Builder
	flags := []string{"--env-file=" + envFile}
	for _, kv := range env {
		if strings.ContainsAny(kv, "\n\r") {
			flags = append(flags, "--env="+kv)
			continue
		}
		file.WriteString(kv + "\n")
	}
	if err := os.WriteFile(envFile, []byte(file.String()), 0o600); err != nil {
		return nil, fmt.Errorf("write the container's environment: %w", err)
	}
	return flags, nil
}

// healthFlags are an image's health check in Podman's words.
func healthFlags(h *agentapi.Health) ([]string, error) {
	if h == nil || len(h.Test) == 0 {
		return nil, nil
	}
	if h.Test[0] == "NONE" {
		return []string{"--no-healthcheck"}, nil
	}
	test, err := json.Marshal(h.Test)
	if err != nil {
		return nil, err
	}
	flags := []string{"--health-cmd=" + string(test)}
	if h.Interval > 0 {
		flags = append(flags, "--health-interval="+h.Interval.String())
	}
	if h.Timeout > 0 {
		flags = append(flags, "--health-timeout="+h.Timeout.String())
	}
	if h.StartPeriod > 0 {
		flags = append(flags, "--health-start-period="+h.StartPeriod.String())
	}
	if h.Retries > 0 {
		flags = append(flags, "--health-retries="+strconv.Itoa(h.Retries))
	}
	return flags, nil
}
