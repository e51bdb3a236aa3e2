// Showtree writes a tree to its stdout, for package tree on the other side of a
// container's wall: showtree DIRECTORY [NAME-TO-SKIP...]. It is gob, for names
// and attributes may be of any bytes.
package main

import (
	"encoding/gob"
	"fmt"
	"os"

	"github.com/fcvm/fcvm/test/tree"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: showtree DIRECTORY [NAME-TO-SKIP...]")
		os.Exit(2)
	}
	entries, err := tree.Read(os.Args[1], os.Args[2:]...)
	if err == nil {
		err = gob.NewEncoder(os.Stdout).Encode(entries)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
