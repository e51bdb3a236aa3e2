package vm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var statuses = []Status{StatusCreated, StatusStarting, StatusRunning, StatusPaused, StatusStopping, StatusExited, StatusFailed}

// Whatever is asked of a VM, its record stays one that a VM can have.
func TestAnyLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Record{Name: "x", Status: StatusCreated, History: []Event{{Status: StatusCreated}}}
		now := time.Unix(1, 0)
		for _, to := range rapid.SliceOf(rapid.SampledFrom(statuses)).Draw(t, "moves") {
			before := r
			before.History = slices.Clone(r.History)
			now = now.Add(time.Second)
			if err := r.Move(to, "why", now); err != nil {
				if diff := cmp.Diff(before, r); diff != "" {
					t.Fatalf("a move that was refused changed the record: %s", diff)
				}
				continue
			}
			last := r.History[len(r.History)-1]
			switch {
			case before.Status.Final():
				t.Fatalf("%s is final, and became %s", before.Status, to)
			case r.Status != to || r.Moves() != before.Moves()+1:
				t.Fatalf("moved from %s to %s: %+v", before.Status, to, r)
			case last != (Event{Time: now.UTC(), Status: to, Reason: "why"}):
				t.Fatalf("history: %+v", last)
			case (r.Reason == "why") != to.Final():
				t.Fatalf("%s has the reason %q", to, r.Reason)
			case to == StatusCreated:
				t.Fatal("created again")
			}
		}
	})
}

// A record of a container that is started again for ever does not grow for ever,
// and says how it began and how it went on last.
func TestHistoryIsBounded(t *testing.T) {
	now := time.Unix(1, 0)
	r := Record{Name: "x", Status: StatusCreated, History: []Event{{Time: now.UTC(), Status: StatusCreated}}}
	want := slices.Clone(r.History)
	for i := range 5 * HistoryEnds {
		to := []Status{StatusStarting, StatusRunning}[i%2]
		now = now.Add(time.Second)
		seen := r
		if err := r.Move(to, "", now); err != nil {
			t.Fatal(err)
		}
		want = append(want, Event{Time: now.UTC(), Status: to})
		if r.Moves() != len(want) || len(r.History) > 2*HistoryEnds {
			t.Fatalf("%d entries and %d moves after %d", len(r.History), r.Moves(), len(want))
		}
		if last := seen.History[len(seen.History)-1]; last.Time.Equal(now) {
			t.Fatal("a copy of the record has changed")
		}
	}
	want = slices.Concat(want[:HistoryEnds], want[len(want)-HistoryEnds:])
	if diff := cmp.Diff(want, r.History); diff != "" {
		t.Error(diff)
	}
}

func TestEveryStatusIsReachedAndLeft(t *testing.T) {
	reached := map[Status]bool{StatusCreated: true}
	for range statuses {
		for from, tos := range transitions {
			for _, to := range tos {
				reached[to] = reached[to] || reached[from]
			}
		}
	}
	for _, s := range statuses {
		if !reached[s] {
			t.Errorf("no life comes to %s", s)
		}
		if (len(transitions[s]) == 0) != s.Final() {
			t.Errorf("%s: final is %v, and it goes to %v", s, s.Final(), transitions[s])
		}
	}
	if err := (&Record{Status: "bogus"}).Move(StatusExited, "", time.Now()); err == nil {
		t.Error("a status that is none goes on")
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "0", "web-1", "Web_1.x", strings.Repeat("a", 63)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{
		"", "-a", ".a", "_a", "a b", "a/b", "..", "a\n", "\na", "ä", "a\x00", "--help", strings.Repeat("a", 64),
	} {
		if err := CheckName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		if !ValidID(id) || len(id) != IDLength || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
		if err := CheckName(NewName()); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"", "abc", "ABCDEFABCDEF", "0123456789abc", "0123456789ag", "../../../etc", "0123456789ab\n"} {
		if ValidID(id) {
			t.Errorf("%q is taken for an id", id)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Spec{Image: "nginx", CPUs: 1, MemoryMiB: MinMemoryMiB, Init: InitAgent, Logs: LogsStream, ScratchMiB: MinScratchMiB}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	most := good
	most.CPUs, most.MemoryMiB, most.Init, most.Logs = MaxCPUs, MaxMemoryMiB, InitSystemd, LogsBoth
	most.Container = ContainerSpec{Command: []string{"", "ä€\n\x1b"}, Env: []string{"A=\t€", "B"}}
	if err := most.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Spec){
		"no image given":                                       func(s *Spec) { s.Image = "" },
		"--cpu 0: a VM has 1 to 32 virtual CPUs":               func(s *Spec) { s.CPUs = 0 },
		"--cpu 33: a VM has 1 to 32 virtual CPUs":              func(s *Spec) { s.CPUs = 33 },
		"--cpu -1: a VM has":                                   func(s *Spec) { s.CPUs = -1 },
		"--mem 1: a VM has 128 to 1048576 MiB of memory":       func(s *Spec) { s.MemoryMiB = 1 },
		"--mem 1048577: a VM has 128 to 1048576 MiB of memory": func(s *Spec) { s.MemoryMiB = MaxMemoryMiB + 1 },
		"--balloon 1: of a VM's 128 MiB it takes 0 to 0":       func(s *Spec) { s.BalloonMiB = 1 },
		"--balloon -1: of a VM's":                              func(s *Spec) { s.BalloonMiB = -1 },
		"--io-max 1: it is at least 1048576 bytes a second":    func(s *Spec) { s.IORate = 1 },
		"--scratch-size 1: a scratch disk has 16 MiB to 8 TiB": func(s *Spec) { s.ScratchMiB = 1 },
		"--disk-bps 1: it is at least 1048576 bytes a second":  func(s *Spec) { s.DiskRate = 1 },
		"--disk-iops 1: it is at least 10 requests a second":   func(s *Spec) { s.DiskOps = 1 },
		"33 mounts: a VM has 32 at most":                       func(s *Spec) { s.Mounts = make([]Mount, MaxMounts+1) },
		`"/": the container's root is its image`:               func(s *Spec) { s.Mounts = []Mount{{Target: "/"}} },
		"two mounts at /a":                                     func(s *Spec) { s.Mounts = []Mount{{Target: "/a"}, {Target: "/a"}} },
		"two mounts at /b":                                     func(s *Spec) { s.Container.Tmpfs, s.Mounts = []string{"/b:size=1m"}, []Mount{{Target: "/b"}} },
		"11 mounts that are disks: a VM has 10": func(s *Spec) {
			for i := range MaxDisks + 1 {
				s.Mounts = append(s.Mounts, Mount{Kind: MountBlock, Target: fmt.Sprintf("/%d", i)})
			}
		},
		`--init "": it is agent or systemd`:                      func(s *Spec) { s.Init = "" },
		`--logs "none": it is stream, file or both`:              func(s *Spec) { s.Logs = "none" },
		`"\xff" in the command: it is not UTF-8 text`:            func(s *Spec) { s.Container.Command = []string{"x", "\xff"} },
		`"a\x00" in the command: it is not UTF-8 text, or holds`: func(s *Spec) { s.Container.Entrypoint = []string{"a\x00"} },
		`--env "KEY": its value is not UTF-8 text`:               func(s *Spec) { s.Container.Env = []string{"KEY=secret\xe4"} },
	} {
		s := good
		spoil(&s)
		err := s.Validate()
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("a secret is told: %v", err)
		}
	}
}
