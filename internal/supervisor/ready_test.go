package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/vm"
)

// serveAgent returns a client of an agent that answers so.
func serveAgent(t *testing.T, h http.HandlerFunc) *agentclient.Client {
	t.Helper()
	conns, done := make(chan net.Conn), make(chan struct{})
	l := pipeListener{conns, done}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) // only then the end of a request shows
		r.Body = io.NopCloser(bytes.NewReader(b))
		h(w, r)
	})}
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	c := agentclient.New(func(ctx context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	t.Cleanup(func() {
		c.Close()
		close(done)
		_ = srv.Close()
		<-served
	})
	return c
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// A service that has accepted one look and never answers it is looked at again.
func TestLookThatHangs(t *testing.T) {
	for name, hangs := range map[string]func(*http.Request, time.Duration){
		"in the guest": func(r *http.Request, limit time.Duration) {
			select {
			case <-time.After(limit):
			case <-r.Context().Done():
			}
		},
		"with the guest": func(r *http.Request, _ time.Duration) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var looks atomic.Int32
				in := &instance{life: newLife(t, vm.StatusStarting, vm.StatusRunning)}
				in.agent = serveAgent(t, func(w http.ResponseWriter, r *http.Request) {
					var req agentapi.ProbeRequest
					_ = json.NewDecoder(r.Body).Decode(&req)
					if looks.Add(1) == 1 {
						hangs(r, req.Timeout)
						http.Error(w, `{"error":"too late"}`, http.StatusConflict)
						return
					}
					w.WriteHeader(http.StatusNoContent)
				})
				g := vm.Gate{Kind: vm.GateTCP, Value: "80", Timeout: time.Minute, Interval: vm.DefaultGateInterval}
				began := time.Now()
				if err := in.openGate(t.Context(), g); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > lookTime+2*checkGrace || looks.Load() != 2 {
					t.Errorf("it took %s and %d looks", took, looks.Load())
				}
			})
		})
	}
}

// What takes longer than the first look is given more time by and by.
func TestGateOfASlowService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const needs = 3 * lookTime
		in := &instance{life: newLife(t, vm.StatusStarting, vm.StatusRunning)}
		in.agent = serveAgent(t, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(needs):
				w.WriteHeader(http.StatusNoContent)
			case <-r.Context().Done():
			}
		})
		g := vm.Gate{Kind: vm.GateHTTP, Value: "http://localhost/", Timeout: time.Minute, Interval: vm.DefaultGateInterval}
		began := time.Now()
		if err := in.openGate(t.Context(), g); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*needs+4*checkGrace {
			t.Errorf("it took %s", took)
		}
	})
}

// The last look has no longer than the gate, and the error says what it saw.
func TestGateOfAServiceThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &instance{life: newLife(t, vm.StatusStarting, vm.StatusRunning)}
		in.agent = serveAgent(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		g := vm.Gate{Kind: vm.GateHTTP, Value: "http://localhost/", Timeout: 8 * time.Second, Interval: vm.DefaultGateInterval}
		began := time.Now()
		err := in.openGate(t.Context(), g)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "no answer within 5s") || took > g.Timeout+time.Second {
			t.Errorf("%v after %s", err, took)
		}
	})
}

func TestLookLimit(t *testing.T) {
	for want, g := range map[time.Duration]vm.Gate{
		5 * time.Second:  {Kind: vm.GateHTTP, Interval: vm.DefaultGateInterval},
		8 * time.Second:  {Kind: vm.GateTCP, Interval: 2 * time.Second},
		30 * time.Second: {Kind: vm.GateExec, Interval: vm.DefaultGateInterval},
		time.Minute:      {Kind: vm.GateExec, Interval: 15 * time.Second},
	} {
		if got := lookLimit(g); got != want {
			t.Errorf("%+v: %s, want %s", g, got, want)
		}
	}
}

// A log gate sees lines as people do: those of a terminal end with a carriage return.
func TestLogGate(t *testing.T) {
	for name, tc := range map[string]struct {
		re     string
		writes []string
		want   bool
	}{
		"a line":               {"^ready$", []string{"not ready\n", "ready\n"}, true},
		"a line of a terminal": {"^ready$", []string{"not ready\r\nready\r\n"}, true},
		"in pieces":            {"^ready$", []string{"rea", "dy\r", "\n"}, true},
		"a prompt":             {"login: $", []string{"login: "}, true},
		"none":                 {"^ready$", []string{"not ready\r\nready to go\r\n"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			seen := newLatch()
			w := &lineWatcher{re: regexp.MustCompile(tc.re), seen: seen}
			for _, text := range tc.writes {
				if _, err := w.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-seen.done:
				if !tc.want {
					t.Error("it was seen")
				}
			default:
				if tc.want {
					t.Error("it was not seen")
				}
			}
		})
	}
}
