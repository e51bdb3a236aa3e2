package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// rawStream is a stream without the manners of a client.
func rawStream(t *testing.T, g *guest, path string, body any) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	l := &oneConn{conn: server, done: make(chan struct{})}
	srv := &http.Server{Handler: g.agent.handler(), ReadHeaderTimeout: patience}
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	t.Cleanup(func() { _ = srv.Close(); <-served })

	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(client, "POST %s HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n%s",
		path, agentapi.StreamProtocol, len(b), b)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(client)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d", resp.StatusCode)
	}
	return upgraded{client, r}
}

// oneConn is a listener of one connection.
type oneConn struct {
	conn net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { close(l.done); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func frame(t *testing.T, typ agentapi.FrameType, payload []byte) []byte {
	t.Helper()
	b, err := agentapi.AppendFrame(nil, typ, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readFrame wants a frame of this type next.
func readFrame(t *testing.T, conn net.Conn, want agentapi.FrameType) []byte {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	typ, p, err := agentapi.NewFrameReader(conn).Next()
	if err != nil || typ != want {
		t.Fatalf("got frame %d %q, %v; want type %d", typ, p, err, want)
	}
	return bytes.Clone(p)
}

// The handler's own limits, which no client of ours would reach.
func TestHandlerRefuses(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	l, dial := pipeCarrier(t)
	srv := &http.Server{Handler: g.agent.handler(), ReadHeaderTimeout: patience}
	go func() { _ = srv.Serve(l) }()
	defer func() { _ = srv.Close() }()
	conn, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	for _, tc := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/", "", http.StatusNotFound},
		{"DELETE", agentapi.PathPlan, "", http.StatusMethodNotAllowed},
		{"PUT", agentapi.PathPlan, "{", http.StatusBadRequest},
		{"PUT", agentapi.PathPlan, `{"version":99,"container":{"args":["x"]}}`, http.StatusConflict},
		{"PUT", agentapi.PathPlan, `{"version":1}`, http.StatusConflict},
		{"POST", agentapi.PathSignal, `{"signal":15}`, http.StatusConflict},
		{"POST", agentapi.PathAttach, "", http.StatusUpgradeRequired},
		{"POST", agentapi.PathExec, `{"args":["true"],"guest":true}`, http.StatusUpgradeRequired},
	} {
		go func() {
			_, _ = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n%s", tc.method, tc.path, len(tc.body), tc.body)
		}()
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s %s %s: status %d, want %d", tc.method, tc.path, tc.body, resp.StatusCode, tc.want)
		}
	}
}
