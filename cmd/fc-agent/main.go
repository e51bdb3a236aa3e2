// Command fc-agent is the guest's side of fcvm: /init of the initramfs, then
// process 1 or a systemd service, and the server of the agent channel.
package main

import "github.com/fcvm/fcvm/internal/agent"

func main() { agent.Main() }
