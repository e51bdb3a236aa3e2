package supervisor

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// pagesDriver may take memory from a server.
type pagesDriver struct {
	vmm.Driver
	can bool
}

func (pagesDriver) Name() string { return "fake" }

func (d pagesDriver) Capabilities() vmm.Capabilities { return vmm.Capabilities{PageServer: d.can} }

// A clone that cannot have its memory from where it was asked to is refused before
// it has as much as a record.
func TestMemoryIsLookedForFirst(t *testing.T) {
	for _, c := range []struct {
		name          string
		memory        Memory
		huge, can, is bool // is: a server runs
		want          error
		words         string
	}{
		{"the file", MemoryFile, false, true, false, nil, ""},
		{"a server", MemoryServer, false, true, true, nil, ""},
		{"a server that is not there", MemoryServer, false, true, false, vm.ErrInvalid, "fcvm memory-server -d warm"},
		{"a server, which the VMM does not know", MemoryServer, false, false, true, vmm.ErrUnsupported, "--memory file"},
		{"whatever there is", MemoryAuto, false, true, false, nil, ""},
		{"whatever the VMM can", MemoryAuto, false, false, true, nil, ""},
		{"huge pages", MemoryAuto, true, true, false, vm.ErrInvalid, "fcvm memory-server -d warm"},
		{"huge pages from the file", MemoryFile, true, true, true, vm.ErrInvalid, "--memory server"},
	} {
		layout := paths.Layout{Data: t.TempDir(), Runtime: t.TempDir()}
		if c.is {
			serveStats(t, layout, "0123456789ab")
		}
		st, err := store.Open(layout)
		if err != nil {
			t.Fatal(err)
		}
		snap := &snapshot.Snapshot{Manifest: snapshot.Manifest{ID: "0123456789ab", Name: "warm"}}
		l := &life{Deps: Deps{Store: st}, Options: Options{Clone: &Clone{Snapshot: snap, Memory: c.memory}}, driver: pagesDriver{can: c.can}}
		snap.Manifest.Needs = l.host()
		snap.Manifest.Needs.HugePages = c.huge
		err = l.checkMemory(t.Context())
		if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) || (err != nil && !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.want != nil && !errors.Is(l.findOriginal(t.Context()), c.want) {
			t.Errorf("%s: it is not looked for", c.name)
		}
	}
}

// listenAt listens where the memory server of a snapshot does.
func listenAt(t *testing.T, l paths.Layout, id string) net.Listener {
	t.Helper()
	path, err := l.MemorySocket(id)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// serveStats answers as a memory server that is asked for its statistics.
func serveStats(t *testing.T, l paths.Layout, id string) {
	t.Helper()
	ln := listenAt(t, l, id)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(c).ReadString('\n')
			_, _ = c.Write([]byte(`{"stats":{}}` + "\n"))
			_ = c.Close()
		}
	}()
}

// linkTo is a link to a server that says line, and hangs up if it is to.
func linkTo(t *testing.T, line string, gone bool) *memserver.Link {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = bufio.NewReader(c).ReadString('\n')
		_, _ = c.Write([]byte(`{"linked":true}` + "\n" + line))
		if gone {
			_ = c.Close()
		}
	}()
	l, err := memserver.OpenLink(t.Context(), path, "0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Whatever a clone was at when it was ended for its memory, or from outside of it,
// that is the reason that is told, and not that its VMM was killed.
func TestWhyAVMWasEnded(t *testing.T) {
	ended := make(chan struct{})
	close(ended)
	for _, c := range []struct {
		name   string
		line   string
		gone   bool
		failed error
		want   error
	}{
		{"by its memory server", `{"ended":"the file was changed"}` + "\n", false, nil, memserver.ErrEnded},
		{"with its memory server", "", true, nil, memserver.ErrGone},
		{"by somebody else", "", false, nil, ErrGuest},
		{"by a gate that did not open", "", false, ErrNotReady, ErrNotReady},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := newInstance(t, &flakyGuest{done: ended})
			in.pages = linkTo(t, c.line, c.gone)
			in.agent = agentclient.New(func(context.Context) (net.Conn, error) { return nil, vmm.ErrExited })
			in.Spec.OnRestore = []string{"ssh-keygen -A"}
			if c.failed != nil {
				in.failure.set(c.failed)
			}
			for what, err := range map[string]error{
				"in the guest": in.guestError(t.Context(), io.ErrUnexpectedEOF),
				"in a hook":    in.runHooks(t.Context()),
			} {
				if !errors.Is(err, c.want) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// A memory server that does not answer, as one that is stopped, is not waited for
// for ever.
func TestAMemoryServerThatDoesNotAnswer(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as a server may take")
	}
	t.Parallel()
	in := newInstance(t, guest{})
	layout := paths.Layout{Data: t.TempDir(), Runtime: t.TempDir()}
	var err error
	if in.Store, err = store.Open(layout); err != nil {
		t.Fatal(err)
	}
	listenAt(t, layout, "0123456789ab") // and nobody accepts
	in.driver = pagesDriver{can: true}
	in.from = &snapshot.Snapshot{Manifest: snapshot.Manifest{ID: "0123456789ab", Name: "warm"}}
	in.Clone = &Clone{Snapshot: in.from, Memory: MemoryServer}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var both sync.WaitGroup
	for what, f := range map[string]func() error{
		"before the start": func() error { return in.checkMemory(ctx) },
		"at the start":     func() error { _, err := in.openPages(ctx); return err },
	} {
		both.Go(func() {
			if err := f(); err == nil || !strings.Contains(err.Error(), "reach the memory server of snapshot warm: it has not answered") {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	both.Wait()
}
