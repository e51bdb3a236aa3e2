package agent

import (
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
)

// background follows a stream until the test asks how it ended.
type background struct {
	out, errs *lines
	ended     chan struct{}
	exit      agentapi.Exit
	err       error
}

func follow(t *testing.T, s *agentclient.Stream, stdin *strings.Reader) *background {
	b := &background{out: newLines(), errs: newLines(), ended: make(chan struct{})}
	io := agentclient.Stdio{Stdin: never{t}, Stdout: b.out, Stderr: b.errs}
	if stdin != nil {
		io.Stdin = stdin
	}
	go func() {
		defer close(b.ended)
		b.exit, b.err = s.Run(t.Context(), io)
	}()
	return b
}

func (b *background) wait(t *testing.T) {
	t.Helper()
	select {
	case <-b.ended:
	case <-time.After(patience):
		t.Fatalf("the stream does not end; so far %q", tail(b.out.String()))
	}
}

func shell(script string) agentapi.Container {
	return agentapi.Container{Args: []string{"sh", "-c", script}, Interactive: true}
}

func (g *guest) start(t *testing.T) int {
	t.Helper()
	r, err := g.client.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r.PID
}

func TestAttachTakesThePlaceOfTheOneBefore(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.plan(t, shell(`echo first; while read x; do echo "got $x"; [ "$x" = end ] && exit 5; done`))
	a := follow(t, g.attach(t), nil)
	g.start(t)
	a.out.wait(t, "first\n")
	second := g.attach(t)
	b := follow(t, second, nil)
	a.wait(t)
	if !errors.Is(a.err, agentclient.ErrLost) {
		t.Errorf("the first: %v, want ErrLost", a.err)
	}
	_ = second.Close() // lost, as by a host that dies
	b.wait(t)
	c := follow(t, g.attach(t), strings.NewReader("x\nend\n"))
	c.wait(t)
	if c.err != nil || c.exit.Code != 5 || c.out.String() != "got x\ngot end\n" {
		t.Errorf("the third: %q, %+v, %v", c.out, c.exit, c.err)
	}
}

func TestOutputWaitsForSomebody(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.plan(t, shell("echo out; echo err >&2; exit 4"))
	if g.start(t) == 0 {
		t.Fatal("it was not started")
	}
	for i := range 3 { // the exit comes to everybody, the output to the first
		r := run(t, g.attach(t), nil)
		if r.exit != (agentapi.Exit{Code: 4}) {
			t.Errorf("attach %d: exit %+v", i, r.exit)
		}
		if want := (i == 0); (r.out == "out\n") != want || (r.err == "err\n") != want {
			t.Errorf("attach %d: %q, %q", i, r.out, r.err)
		}
	}
	st, err := g.client.Status(t.Context())
	if err != nil || st.Phase != agentapi.PhaseExited || st.Exit == nil || st.Exit.Code != 4 {
		t.Errorf("status %+v, %v", st, err)
	}
}

// A connection that is lost while the process is stuck in its output costs
// what it had taken, and the next one gets the rest.
func TestLostConnectionInTheMiddleOfOutput(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.plan(t, shell("seq 1 500000; echo end"))
	conn := rawStream(t, g, agentapi.PathAttach, nil)
	g.start(t)
	readFrame(t, conn, agentapi.FrameStdout)
	_ = conn.Close()
	r := run(t, g.attach(t), nil)
	got := strings.Split(strings.TrimSuffix(r.out, "\nend\n"), "\n")
	if r.exit.Code != 0 || len(got) < 400000 || got[len(got)-1] != "500000" {
		t.Fatalf("%d lines, the last %q, %+v", len(got), got[len(got)-1], r.exit)
	}
}

// However an attach and the end of the process meet, the exit arrives.
func TestExitReachesWhoeverAttachesMeanwhile(t *testing.T) {
	for i := range 300 {
		s := newSession(func(syscall.Signal) {})
		attach := func() (host net.Conn, serve func()) {
			host, theirs := net.Pipe()
			return host, func() { s.serve(theirs) }
		}
		var all sync.WaitGroup
		first, serveFirst := attach()
		all.Go(serveFirst)
		for attached := false; !attached; {
			s.mu.Lock()
			attached = s.att != nil
			s.mu.Unlock()
		}
		go func() { // takes the exit, if it comes this way
			_, _, _ = agentapi.NewFrameReader(first).Next()
		}()
		second, serveSecond := attach()
		all.Go(func() {
			time.Sleep(time.Duration(i) * time.Microsecond)
			serveSecond()
		})
		all.Go(func() { s.finish(agentapi.Exit{Code: 3}) })
		var e agentapi.Exit
		p := readFrame(t, second, agentapi.FrameExit)
		if err := json.Unmarshal(p, &e); err != nil || e.Code != 3 {
			t.Fatalf("%q, %v", p, err)
		}
		_, _ = first.Close(), second.Close()
		all.Wait()
	}
}

func TestInputIsAcknowledgedToWhoSentIt(t *testing.T) {
	q := newInput()
	a, b := new(attachment), new(attachment)
	put := func(n int, from *attachment) {
		t.Helper()
		var data []byte // nil: the end
		if n > 0 {
			data = make([]byte, n)
		}
		if err := q.put(data, from); err != nil {
			t.Fatal(err)
		}
	}
	take := func(want int) {
		t.Helper()
		c, ok := q.next()
		if !ok {
			t.Fatal("no input")
		}
		if n := q.taken(c); n != want {
			t.Errorf("%d bytes to acknowledge, want %d", n, want)
		}
	}
	put(100, a)
	put(0, a) // the end of a's input: nothing follows that could carry the rest
	put(20, b)
	take(100)
	take(0)
	take(20)
	put(10, a)
	put(10, a)
	put(7, b)
	take(0) // more of a's is waiting
	take(20)
	take(7)
	put(ackStep, a)
	put(1, a)
	take(ackStep)
	take(1)
	if a.unacked != 0 || b.unacked != 0 {
		t.Errorf("%d and %d bytes are not acknowledged", a.unacked, b.unacked)
	}
}

func TestInputAfterTheEndIsNotKept(t *testing.T) {
	q := newInput()
	q.shut()
	if err := q.put(make([]byte, 100), new(attachment)); err != nil || len(q.chunks) != 0 {
		t.Errorf("%d chunks are kept, %v", len(q.chunks), err)
	}
}

func TestTerminalSizeBeforeTheProcess(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	c := shell("stty size")
	c.TTY = true
	g.plan(t, c)
	conn := rawStream(t, g, agentapi.PathAttach, nil)
	if _, err := conn.Write(frame(t, agentapi.FrameResize, agentapi.Resize(50, 60))); err != nil {
		t.Fatal(err)
	}
	g.start(t)
	if p := readFrame(t, conn, agentapi.FrameStdout); strings.TrimSpace(string(p)) != "50 60" {
		t.Errorf("size %q", p)
	}
}

func TestOutputPumpStopsAtWhatWasInThePipe(t *testing.T) {
	cmd := exec.Command("true")
	s, err := newStdio(cmd, false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	w := s.theirs[0]
	stop := make(chan struct{})
	writer := make(chan struct{})
	go func() { // somebody who goes on after the process has ended
		defer close(writer)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = w.Write(make([]byte, 4096))
			}
		}
	}()
	o := s.out[0]
	o.finish()
	sent := 0
	o.pump(func(_ agentapi.FrameType, p []byte) error { sent += len(p); return nil })
	close(stop)
	_ = o.f.Close()
	<-writer
	if sent > 2*pipeSize {
		t.Errorf("%d bytes sent after the end", sent)
	}
}
