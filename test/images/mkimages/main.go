// Mkimages makes container images from Debian's packages and prints their
// references:
//
//	go run ./test/images/mkimages -o DIR [-docker] busybox nginx
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/fcvm/fcvm/test/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := mkimages(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimages:", err)
		os.Exit(1)
	}
}

func mkimages(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mkimages", flag.ExitOnError)
	dir := flags.String("o", "build/images", "directory that keeps the images")
	docker := flags.Bool("docker", false, "make Docker archives instead of OCI archives")
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: mkimages [-o DIR] [-docker] IMAGE…\nimages: %s\n", strings.Join(images.Names(), ", "))
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		flags.Usage()
		os.Exit(2)
	}
	prefix, archive := "oci-archive:", images.OCIArchive
	if *docker {
		prefix, archive = "docker-archive:", images.DockerArchive
	}
	for _, image := range flags.Args() {
		path, err := archive(ctx, *dir, image)
		if err != nil {
			return err
		}
		fmt.Println(prefix + path)
	}
	return nil
}
