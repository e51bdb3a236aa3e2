// Command peer is the guest's end of the tests of networks: the server, or a
// call to another one. It prints what the call returns, or fails.
//
//	peer serve PORT NAME
//	peer lookup NAME
//	peer CALL ADDRESS:PORT [SIZE...]
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/fcvm/fcvm/test/e2e/network/netpeer"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: peer serve PORT NAME | lookup NAME | CALL ADDRESS:PORT [SIZE...]")

func run(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	switch args[0] {
	case "serve":
		return serve(args[1:])
	case "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupHost(ctx, args[1])
		if err == nil {
			fmt.Println(strings.Join(addrs, " "))
		}
		return err
	}
	sizes := []int{0}
	for i, s := range args[2:] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return errUsage
		}
		sizes = append(sizes[:i], n)
	}
	return call(args[0], args[1], sizes)
}

// serve serves one port, of TCP and UDP and all addresses.
func serve(args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	go netpeer.ServePackets(pc)
	netpeer.Serve(l, args[1])
	return nil
}

// dialTimeout is longer than a few lost packets take.
const dialTimeout = 30 * time.Second

func call(what, addr string, sizes []int) error {
	on := func(network string) netpeer.Dial {
		return func() (net.Conn, error) { return net.DialTimeout(network, addr, dialTimeout) }
	}
	tcp, size := on("tcp"), sizes[0]
	var result any
	var err error
	switch what {
	case "name":
		result, err = tcp.Name()
	case "bulk":
		err = tcp.Bulk(int64(size))
	case "short":
		err = tcp.Short(size, sizes[len(sizes)-1])
	case "halfclose":
		err = tcp.HalfClose()
	case "udp":
		err = on("udp").Datagrams(sizes...)
	case "push":
		result, err = tcp.Push(int64(size))
	case "pull":
		result, err = tcp.Pull(int64(size))
	case "latency":
		result, err = tcp.Latency(size)
	default:
		return errUsage
	}
	if err == nil && result != nil {
		fmt.Println(result)
	}
	return err
}
