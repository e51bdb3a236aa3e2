package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func (a *agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+agentapi.PathStatus, a.getStatus)
	mux.HandleFunc("PUT "+agentapi.PathPlan, a.putPlan)
	mux.HandleFunc("GET "+agentapi.PathUp, a.getUp)
	mux.HandleFunc("GET "+agentapi.PathReady, a.getReady)
	mux.HandleFunc("POST "+agentapi.PathAttach, a.postAttach)
	mux.HandleFunc("POST "+agentapi.PathStart, a.postStart)
	mux.HandleFunc("POST "+agentapi.PathSignal, a.postSignal)
	mux.HandleFunc("POST "+agentapi.PathExec, a.postExec)
	mux.HandleFunc("POST "+agentapi.PathProbe, a.postProbe)
	mux.HandleFunc("GET "+agentapi.PathStats, a.getStats)
	mux.HandleFunc("GET "+agentapi.PathProcs, a.getProcesses)
	mux.HandleFunc("POST "+agentapi.PathCopyIn, a.postCopyIn)
	mux.HandleFunc("GET "+agentapi.PathCopyOut, a.getCopyOut)
	mux.HandleFunc("POST "+agentapi.PathRestore, a.postRestore)
	mux.HandleFunc("POST "+agentapi.PathClock, a.postClock)
	mux.HandleFunc("POST "+agentapi.PathShare, a.postShare)
	mux.HandleFunc("POST "+agentapi.PathShutdown, a.postShutdown)
	return mux
}

func (a *agent) getStatus(w http.ResponseWriter, _ *http.Request) {
	st := a.state.status()
	st.Uptime = uptime()
	reply(w, http.StatusOK, st)
}

// getUp answers when the guest has its root, or never will.
func (a *agent) getUp(w http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-a.state.rooted:
		a.getStatus(w, r)
	}
}

// getReady answers when the boot is over, one way or the other.
func (a *agent) getReady(w http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-a.state.settled:
		a.getStatus(w, r)
	}
}

func (a *agent) putPlan(w http.ResponseWriter, r *http.Request) {
	plan := new(agentapi.Plan)
	if !decode(w, r, plan) {
		return
	}
	if err := a.state.setPlan(plan); err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *agent) postStart(w http.ResponseWriter, r *http.Request) {
	plan, err := a.state.waitReady(r.Context())
	if err != nil {
		replyError(w, http.StatusServiceUnavailable, err)
		return
	}
	pid, err := a.container.start(r.Context(), plan.Container)
	if err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, agentapi.StartResponse{PID: pid})
}

func (a *agent) postSignal(w http.ResponseWriter, r *http.Request) {
	var req agentapi.SignalRequest
	if !decode(w, r, &req) {
		return
	}
	if err := a.container.signal(req.Signal); err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// postAttach streams the container's stdio. It may come before Start, so that
// nothing is missed, and again after a lost connection.
func (a *agent) postAttach(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrade(w, r)
	if err != nil {
		return
	}
	a.container.session.serve(conn)
}

func (a *agent) postExec(w http.ResponseWriter, r *http.Request) {
	var req agentapi.ExecRequest
	if !decode(w, r, &req) {
		return
	}
	e, err := a.newExec(req)
	if err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	conn, err := upgrade(w, r)
	if err != nil {
		return
	}
	serveExec(e, conn, req.Detach)
}

func (a *agent) postShutdown(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNoContent)
	_ = http.NewResponseController(w).Flush()
	a.poweroff()
}

func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, agentapi.MaxBody)).Decode(v)
	if err != nil {
		replyError(w, http.StatusBadRequest, fmt.Errorf("read request: %w", err))
		return false
	}
	return true
}

func reply(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte(`{"error":"the answer cannot be encoded"}`) // unreachable: all types can be
	}
	w.Header().Set("Content-Type", "application/json")
	// With a length it is complete before the handler ends.
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write(b) // a failing connection is the client's to notice
}

func replyError(w http.ResponseWriter, code int, err error) {
	reply(w, code, agentapi.Error{Message: err.Error()})
}

// upgraded is a connection taken over from HTTP, with what the server had
// read of it already.
type upgraded struct {
	net.Conn
	r io.Reader
}

func (u upgraded) Read(p []byte) (int, error) { return u.r.Read(p) }

func upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if r.Header.Get("Upgrade") != agentapi.StreamProtocol {
		err := errors.New("want Upgrade: " + agentapi.StreamProtocol)
		replyError(w, http.StatusUpgradeRequired, err)
		return nil, err
	}
	// The server stops reading in the background only when the body is at its end.
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, agentapi.MaxBody))
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		replyError(w, http.StatusInternalServerError, err)
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", agentapi.StreamProtocol)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return upgraded{conn, rw.Reader}, nil
}

// uptime is seconds since the guest's kernel started.
func uptime() float64 {
	first, _, _ := strings.Cut(readFile("/proc/uptime"), " ")
	s, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return s
}
