package network

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/test/e2e/network/netpeer"
)

// What each round of the benchmark measures.
const (
	benchSize  = 100e6 // bytes of a stream
	benchTimes = 300   // of a byte there and back
)

// BenchmarkVM measures every network with a whole VM beside a bare tap: how
// fast one stream goes out of the guest to a program on the host and into the
// guest from there, by a published port where there is one, and how long a
// byte takes there and back. All take turns, once a round; what counts is the
// median. The table that it prints is the one in README.md.
func BenchmarkVM(b *testing.B) {
	nettest.Need(b)
	image := peerImage(b)
	tracks := []*track{newBareTap(b, image)}
	for _, s := range suites() {
		s.image = image
		if why := s.missing(); why != "" {
			b.Logf("%s is not measured: %s", s.backend, why)
			continue
		}
		tracks = append(tracks, s.newTrack(b))
	}
	for b.Loop() {
		for _, t := range tracks {
			t.round(b)
		}
	}
	b.ReportMetric(0, "ns/op") // of all together: it says nothing
	report(b, tracks)
}

// track is one network to measure.
type track struct {
	name string
	m    *machine
	out  string       // where the guest reaches the host's server
	in   netpeer.Dial // how the host reaches the guest's

	outRate, inRate, outTime, inTime []float64 // MB/s, µs
}

func (t *track) round(b *testing.B) {
	b.Helper()
	number := func(s string, err error) float64 {
		b.Helper()
		f, parseErr := strconv.ParseFloat(s, 64)
		if err != nil || parseErr != nil {
			b.Fatal(t.name, err, parseErr)
		}
		return f
	}
	micros := func(d time.Duration, err error) float64 {
		b.Helper()
		if err != nil {
			b.Fatal(t.name, err)
		}
		return float64(d.Nanoseconds()) / 1e3
	}
	t.outRate = append(t.outRate, number(t.m.tryCall(b, "push", t.out, benchSize)))
	in, err := t.in.Push(benchSize)
	if err != nil {
		b.Fatal(t.name, err)
	}
	t.inRate = append(t.inRate, in)
	t.outTime = append(t.outTime, micros(time.ParseDuration(t.m.call(b, "latency", t.out, benchTimes))))
	t.inTime = append(t.inTime, micros(t.in.Latency(benchTimes)))
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func report(b *testing.B, tracks []*track) {
	bare := tracks[0]
	var table strings.Builder
	_, _ = fmt.Fprintf(&table, "%s, medians of %d rounds\n\n| network | out of the guest | into the guest | out, there and back | in, there and back |\n| --- | --- | --- | --- | --- |\n",
		os.Getenv(envDriver), len(bare.outRate))
	for _, t := range tracks {
		out, in := median(t.outRate), median(t.inRate)
		_, _ = fmt.Fprintf(&table, "| %s | %.0f MB/s (%.2f) | %.0f MB/s (%.2f) | %.0f µs | %.0f µs |\n",
			t.name, out, out/median(bare.outRate), in, in/median(bare.inRate), median(t.outTime), median(t.inTime))
		b.ReportMetric(out, t.name+"-out-MB/s")
		b.ReportMetric(in, t.name+"-in-MB/s")
	}
	fmt.Printf("\n%s\n", table.String()) // a log of that length would be cut
}

// newTrack starts a VM on a backend.
func (s *suite) newTrack(b *testing.B) *track {
	b.Helper()
	m := s.start(b, "bench-"+s.backend, "-p", "0:"+peerPort)
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go netpeer.Serve(l, "host")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	in := net.JoinHostPort(nettest.HostAddr, m.port(b, peerPort+"/tcp"))
	return &track{name: s.backend, m: m, out: net.JoinHostPort(network.Gateway, port), in: dialHost("tcp4", in)}
}

// newBareTap starts a VM whose tap has nothing behind it: the host's end is a
// server in the namespace of the tap, which has the gateway's address there.
// That is the bridge's namespace, without its rules.
func newBareTap(b *testing.B, image string) *track {
	b.Helper()
	if os.Getenv(envRealRoot) == "" {
		b.Skip("only root reaches the tap's namespace")
	}
	m := account{}.start(b, image, "bridge", "bench-bare")
	ns, err := os.Open("/proc/" + m.run(b, "inspect", "--format", "{{.Resolved.VMM.PID}}", m.name) + "/ns/net")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ns.Close() })
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err == nil {
		conn.FlushRuleset()
		err = conn.Flush()
	}
	if err != nil {
		b.Fatal(err)
	}
	var l net.Listener
	err = within(ns, func() (err error) {
		l, err = net.Listen("tcp4", network.Gateway+":0")
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go netpeer.Serve(l, "host")
	guest, _, _ := strings.Cut(network.GuestAddress, "/")
	return &track{name: "bare-tap", m: m, out: l.Addr().String(), in: func() (c net.Conn, err error) {
		err = within(ns, func() (err error) {
			c, err = net.DialTimeout("tcp4", net.JoinHostPort(guest, peerPort), dialTimeout)
			return err
		})
		return c, err
	}}
}

// within calls f on a thread inside of a namespace. The thread is of no
// further use, and ends.
func within(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
