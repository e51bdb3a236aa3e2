package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// service is a metadata service like Firecracker's.
type service struct {
	mu     sync.Mutex
	token  string
	plan   string // "": there is none
	asked  int
	hangUp int // so many requests get no answer
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.hangUp > 0 {
		s.hangUp--
		panic(http.ErrAbortHandler)
	}
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" && r.Header.Get("X-metadata-token-ttl-seconds") != "":
		_, _ = io.WriteString(w, s.token)
	case r.Header.Get("X-metadata-token") != s.token:
		http.Error(w, "MMDS token not valid.", http.StatusUnauthorized)
	case r.Method != http.MethodGet || r.URL.Path != "/"+agentapi.MMDSPlanKey || s.plan == "":
		http.Error(w, "Resource not found: /plan.", http.StatusNotFound)
	default:
		_ = json.NewEncoder(w).Encode(s.plan)
	}
}

func (s *service) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *service) wasAsked(n int) func() bool {
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.asked >= n
	}
}

// poll has a guest ask a service for its plan.
func poll(t *testing.T, s *service) (*guest, <-chan error) {
	t.Helper()
	srv := httptest.NewServer(s)
	g := newGuest(t, pipeCarrier)
	g.agent.state.up()
	m := &metadata{address: srv.URL}
	ended := make(chan error, 1)
	go func() { ended <- g.agent.pollPlan(t.Context(), m) }()
	t.Cleanup(func() { m.close(); srv.Close() })
	return g, ended
}

func planText(hostname string) string {
	return fmt.Sprintf(`{"version":%d,"hostname":%q,"container":{"args":["x"]}}`, agentapi.Version, hostname)
}

func TestPlanComesLate(t *testing.T) {
	s := &service{token: "one"}
	g, ended := poll(t, s)
	eventually(t, "requests for the plan", s.wasAsked(5))
	if st, err := g.client.WaitUp(t.Context()); err != nil || st.Phase != agentapi.PhaseUp || st.HavePlan {
		t.Errorf("while it waits: %+v, %v", st, err)
	}
	// As after a snapshot: connections are lost, another service answers.
	s.set(func() { s.hangUp, s.token, s.asked = 3, "two", 0 })
	eventually(t, "requests of the other service", s.wasAsked(10))
	s.set(func() { s.plan = planText("late") })
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if plan := g.agent.state.waitPlan(); plan.Hostname != "late" {
		t.Errorf("%+v", plan)
	}
}

// A plan may come over the channel, to a guest that waits for the service's.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A clock that jumps while one request is under way is no reason to give up.
func TestPlanAfterAJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{token: "t", plan: planText("late")}
		asked := 0
		m := &metadata{http: http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if asked++; asked < mmdsTries {
				time.Sleep(2 * mmdsTimeout)
				return nil, syscall.ECONNRESET
			}
			w, sent := httptest.NewRecorder(), r.Clone(r.Context())
			for name := range r.Header { // as it arrives
				sent.Header.Set(name, r.Header[name][0])
			}
			s.ServeHTTP(w, sent)
			return w.Result(), nil
		})}}
		a := &agent{state: newState()}
		a.state.up()
		if err := a.pollPlan(t.Context(), m); err != nil {
			t.Error(err)
		}
		asked, s.plan = -10*mmdsTries, ""
		if err := (&agent{state: newState()}).pollPlan(t.Context(), m); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a service that is not there: %v", err)
		}
	})
}

func TestPlanComesByTheChannel(t *testing.T) {
	s := &service{token: "one"}
	g, ended := poll(t, s)
	eventually(t, "requests for the plan", s.wasAsked(3))
	g.plan(t, agentapi.Container{Args: []string{"y"}})
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestPlanThatIsNone(t *testing.T) {
	for text, want := range map[string]string{
		"{": errBadPlan.Error(),
		`{"version":99,"container":{"args":["x"]}}`: "version 99",
	} {
		_, ended := poll(t, &service{token: "one", plan: text})
		if err := <-ended; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A guest without a plan can be saved; it goes on as another one, whose plan
// comes as usual.
func TestRestoreBeforeThePlan(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	g := newGuest(t, serialCarrier)
	k := g.restorable()
	g.agent.state.up()
	newLink(t)
	writeText(t, "/etc/machine-id", "")
	req := agentapi.RestoreRequest{ClockSync: agentapi.ClockSync{Epoch: "e"}, Entropy: make([]byte, agentapi.MinEntropy), Hostname: "first", MachineID: newID, Env: []string{"A=b"}}
	if _, err := g.client.Restore(t.Context(), req, nil); err != nil || len(k.entropy) != 1 {
		t.Fatalf("%v, reseeded %d times", err, len(k.entropy))
	}
	plan := &agentapi.Plan{Version: agentapi.Version, Hostname: "planned", Network: oldNetwork(), Container: shell(`echo "$A"`)}
	if err := g.client.SendPlan(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if err := configure(g.agent.state.waitPlan()); err != nil {
		t.Fatal(err)
	}
	g.agent.state.ready()
	wantText(t, "/etc/machine-id", newID+"\n")
	wantText(t, "/etc/hostname", "planned\n")
	s := g.attach(t)
	g.start(t)
	if r := run(t, s, nil); r.out != "\n" || r.exit.Code != 0 {
		t.Errorf("%+v", r)
	}
}

func TestGuestIsUp(t *testing.T) {
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, carrier)
			up := make(chan error, 1)
			go func() {
				st, err := g.client.WaitUp(t.Context())
				if err == nil && (st.Phase != agentapi.PhaseUp || st.HavePlan) {
					err = fmt.Errorf("%+v", st)
				}
				up <- err
			}()
			g.agent.state.up()
			if err := <-up; err != nil {
				t.Error(err)
			}
			g.plan(t, shell("exit 3"))
			s := g.attach(t)
			g.start(t)
			if r := run(t, s, nil); r.exit.Code != 3 {
				t.Errorf("%+v", r)
			}
			if st, err := g.client.WaitUp(t.Context()); err != nil || st.Phase != agentapi.PhaseExited || !st.HavePlan {
				t.Errorf("after the end: %+v, %v", st, err)
			}
		})
	}
	g := newGuest(t, pipeCarrier)
	g.agent.state.fail(errors.New("no disk"))
	if _, err := g.client.WaitUp(t.Context()); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("a guest that failed: %v", err)
	}
}
