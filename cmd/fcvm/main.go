// Command fcvm runs containers in microVMs.
package main

import (
	"context"
	"os"

	"github.com/fcvm/fcvm/internal/cli"
	"github.com/fcvm/fcvm/internal/network/netns"
)

func main() {
	netns.Main() // this may be the first process of a VM's network namespace
	os.Exit(cli.Main(context.Background(), cli.Process()))
}
