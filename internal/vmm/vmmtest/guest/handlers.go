package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest/testapi"
)

func (g *guest) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+agentapi.PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, agentapi.Status{Version: agentapi.Version, Phase: agentapi.PhaseReady, Uptime: uptime()})
	})
	mux.HandleFunc("POST "+agentapi.PathShutdown, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		_ = http.NewResponseController(w).Flush()
		reset()
	})
	mux.HandleFunc("GET "+testapi.PathTicks, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, g.ticks.Load())
	})
	mux.HandleFunc("GET "+testapi.PathMachine, func(w http.ResponseWriter, _ *http.Request) {
		m, err := describe()
		answer(w, m, err)
	})
	mux.HandleFunc("GET "+testapi.PathFree, func(w http.ResponseWriter, _ *http.Request) {
		mib, err := freeMiB()
		answer(w, mib, err)
	})
	mux.HandleFunc("POST "+testapi.PathTouch, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, nil, touchFree())
	})
	mux.HandleFunc("PUT "+testapi.PathPattern, func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, g.pattern.fill(r.Body))
	})
	mux.HandleFunc("GET "+testapi.PathPattern, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, g.pattern.check())
	})
	mux.HandleFunc("POST "+testapi.PathEcho, echo)
	mux.HandleFunc("PUT "+testapi.PathDisk, func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, writeDisk(r))
	})
	mux.HandleFunc("POST "+testapi.PathLink, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, nil, linkUp())
	})
	mux.HandleFunc("GET "+testapi.PathMetadata, func(w http.ResponseWriter, r *http.Request) {
		m, err := metadata(r)
		answer(w, m, err)
	})
	return mux
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = agentapi.Error{Message: err.Error()}
	}
	reply(w, v)
}

// echo sends the request's body back while it still comes.
func echo(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		answer(w, nil, err)
		return
	}
	_ = rc.Flush()            // the header
	_, _ = io.Copy(w, r.Body) // what is missing is the client's to notice
}

func uptime() float64 {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	s, _, _ := strings.Cut(string(b), " ")
	f, _ := strconv.ParseFloat(s, 64)
	return f
}

func describe() (testapi.Machine, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return testapi.Machine{}, err
	}
	m := testapi.Machine{CPUs: runtime.NumCPU(), MemoryMiB: int(si.Totalram * uint64(si.Unit) >> 20)}
	disks, err := filepath.Glob("/sys/block/vd*")
	if err != nil {
		return m, err
	}
	sort.Strings(disks)
	for _, d := range disks {
		head := make([]byte, testapi.HeadSize)
		if err := readHead("/dev/"+filepath.Base(d), head); err != nil {
			return m, err
		}
		m.Disks = append(m.Disks, string(head))
	}
	if l, err := netlink.LinkByName(network.GuestInterface); err == nil {
		m.MAC = l.Attrs().HardwareAddr.String()
	}
	return m, nil
}

func readHead(path string, head []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.ReadFull(f, head)
	return err
}

// writeDisk writes the body to the start of the disk that the query names.
func writeDisk(r *http.Request) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, testapi.HeadSize))
	if err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/"+filepath.Base(r.URL.Query().Get("disk")), os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// linkUp gives the interface its address and sends one packet to the gateway.
func linkUp() error {
	l, err := netlink.LinkByName(network.GuestInterface)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(network.GuestAddress)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	if err := netlink.RouteReplace(&netlink.Route{
		LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: net.ParseIP(agentapi.MMDSAddress), Mask: net.CIDRMask(32, 32)},
	}); err != nil {
		return err
	}
	c, err := net.Dial("udp", net.JoinHostPort(network.Gateway, "9"))
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("hello"))
	return errors.Join(err, c.Close())
}

// mmds keeps no connection: after a restore the service is another one, which resets
// those that it did not accept itself.
var mmds = http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// metadata asks the metadata service as the agent does.
func metadata(r *http.Request) (testapi.Metadata, error) {
	token, _, err := ask(r, http.MethodPut, "/latest/api/token", http.Header{"X-metadata-token-ttl-seconds": {"60"}})
	if err != nil {
		return testapi.Metadata{}, err
	}
	body, status, err := ask(r, http.MethodGet, "/"+agentapi.MMDSPlanKey,
		http.Header{"X-metadata-token": {string(token)}, "Accept": {"application/json"}})
	return testapi.Metadata{Status: status, Body: body}, err
}

func ask(r *http.Request, method, path string, h http.Header) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(r.Context(), method, "http://"+agentapi.MMDSAddress+path, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header = h
	resp, err := mmds.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("ask the metadata service: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, agentapi.MaxBody))
	return b, resp.StatusCode, err
}

func freeMiB() (int, error) {
	var si unix.Sysinfo_t
	err := unix.Sysinfo(&si)
	return int(si.Freeram * uint64(si.Unit) >> 20), err
}

// touchFree has the host pay for memory of the guest.
func touchFree() error {
	b, err := unix.Mmap(-1, 0, testapi.TouchMiB<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	return unix.Munmap(b)
}
