package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

// Server serves one VM's control socket.
type Server struct {
	vm   VM
	http *http.Server

	mu     sync.Mutex
	joined map[net.Conn]struct{} // both ends of connections to the agent
	closed bool
	done   sync.WaitGroup
}

// Listen serves vm on a new socket at path until Close.
func Listen(path string, v VM) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("make the control socket: %w", err), ln.Close())
	}
	s := &Server{vm: v, joined: map[net.Conn]struct{}{}}
	s.http = &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // a client that goes away is no news
	}
	s.done.Go(func() { _ = s.http.Serve(ln) }) // ends with ErrServerClosed
	return s, nil
}

// Close ends the service. Answers that are being written are finished before
// ctx ends.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	s.mu.Lock()
	s.closed = true
	for c := range s.joined {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
	return err
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathAgent, s.agent)
	mux.HandleFunc("POST "+pathStop, func(w http.ResponseWriter, r *http.Request) {
		var q StopRequest
		if decode(w, r, &q) {
			answer(w, nil, s.vm.Stop(r.Context(), q.Timeout))
		}
	})
	mux.HandleFunc("POST "+pathKill, func(w http.ResponseWriter, r *http.Request) {
		var q KillRequest
		if decode(w, r, &q) {
			answer(w, nil, s.vm.Kill(r.Context(), q.Signal))
		}
	})
	mux.HandleFunc("POST "+pathRename, func(w http.ResponseWriter, r *http.Request) {
		var q RenameRequest
		if decode(w, r, &q) {
			answer(w, nil, s.vm.Rename(r.Context(), q.Name))
		}
	})
	mux.HandleFunc("POST "+pathUpdate, func(w http.ResponseWriter, r *http.Request) {
		var q UpdateRequest
		if decode(w, r, &q) {
			answer(w, nil, s.vm.Update(r.Context(), q))
		}
	})
	mux.HandleFunc("POST "+pathPublish, s.publish)
	mux.HandleFunc("POST "+pathSnapshot, s.snapshot)
	mux.HandleFunc("POST "+pathPause, func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.vm.Pause(r.Context()))
	})
	mux.HandleFunc("POST "+pathResume, func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.vm.Resume(r.Context()))
	})
	mux.HandleFunc("GET "+pathWait, func(w http.ResponseWriter, r *http.Request) {
		ended, err := s.vm.Wait(r.Context())
		answer(w, ended, err)
	})
	mux.HandleFunc("GET "+pathReady, func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.vm.WaitReady(r.Context()))
	})
	return mux
}

// agent joins the client to a new connection of the guest's agent.
func (s *Server) agent(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != agentProtocol {
		answer(w, nil, fmt.Errorf("%w: want Upgrade: %s", vm.ErrInvalid, agentProtocol))
		return
	}
	agent, err := s.vm.DialAgent(r.Context())
	if err != nil {
		answer(w, nil, err)
		return
	}
	client, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = agent.Close()
		return
	}
	if !s.add(client, agent) {
		return
	}
	defer s.drop(client, agent)
	_, err = fmt.Fprintf(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", agentProtocol)
	if err == nil {
		join(client, rw.Reader, agent)
	}
}

// join passes bytes both ways until one side has ended.
func join(client net.Conn, fromClient *bufio.Reader, agent net.Conn) {
	done := make(chan struct{}, 2)
	pass := func(dst io.Writer, src io.Reader) {
		_, _ = io.Copy(dst, src) // a broken connection shows at its ends
		done <- struct{}{}
	}
	go pass(agent, fromClient)
	go pass(client, agent)
	<-done
	_ = client.Close()
	_ = agent.Close()
	<-done
}

func (s *Server) add(conns ...net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		for _, c := range conns {
			_ = c.Close()
		}
		return false
	}
	for _, c := range conns {
		s.joined[c] = struct{}{}
	}
	s.done.Add(1)
	return true
}

func (s *Server) drop(conns ...net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(s.joined, c)
	}
	s.done.Done()
}

func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v); err != nil {
		answer(w, nil, fmt.Errorf("%w: %w", vm.ErrInvalid, err))
		return false
	}
	return true
}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
	Kind  string `json:"kind,omitempty"` // a key of kinds
}

// kinds are the errors that a client can tell apart.
var kinds = map[string]error{
	"not-running": vm.ErrNotRunning, "running": vm.ErrRunning, "name-taken": vm.ErrNameTaken,
	"invalid": vm.ErrInvalid, "paused": vm.ErrPaused,
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(w).Encode(v) // a client that is gone needs none
		return
	}
	f := failure{Error: err.Error()}
	for kind, sentinel := range kinds {
		if errors.Is(err, sentinel) {
			f.Kind = kind
		}
	}
	w.WriteHeader(http.StatusConflict)
	_ = json.NewEncoder(w).Encode(f)
}
