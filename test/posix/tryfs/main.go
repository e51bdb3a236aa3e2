// Tryfs tries a file system: tryfs DIRECTORY prints the names of the cases that
// failed there, and on stderr why.
package main

import (
	"fmt"
	"os"

	"github.com/fcvm/fcvm/test/posix"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: tryfs DIRECTORY")
		os.Exit(2)
	}
	for _, f := range posix.Run(os.Args[1]) {
		fmt.Println(f.Name)
		fmt.Fprintf(os.Stderr, "%s: %v\n", f.Name, f.Err)
	}
	fmt.Println("done")
}
