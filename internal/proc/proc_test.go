package proc

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLifeOfAProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	start, err := StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	own, err := StartTime(os.Getpid())
	if err != nil || own > start {
		t.Errorf("this process started at %d (%v), its child at %d", own, err, start)
	}
	if !Alive(pid, start) {
		t.Error("it is not alive")
	}
	if Alive(pid, start+1) {
		t.Error("another process of its id is taken for it")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(30 * time.Second); Alive(pid, start); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("a zombie counts as alive")
		}
	}
	_ = cmd.Wait()
	if _, err := StartTime(pid); err == nil || Alive(pid, start) {
		t.Error("it is there after its end")
	}
}

func TestNoSuchProcess(t *testing.T) {
	for _, pid := range []int{0, -1, 1 << 30} {
		if _, err := StartTime(pid); err == nil || Alive(pid, 0) {
			t.Errorf("process %d: %v", pid, err)
		}
	}
}

func TestParse(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 12345 20 21"
	for _, name := range []string{"(sh)", "(a b)", "(a) Z 9 (b)", "())", "(\n)"} {
		st, err := parse([]byte("42 " + name + rest))
		want := Stat{
			Name: name[1 : len(name)-1], State: 'S', Parent: 1, CPU: (11 + 12) * tick, Start: 12345, Resident: 21 * int64(os.Getpagesize()),
		}
		if err != nil || st != want {
			t.Errorf("%q: %+v, %v", name, st, err)
		}
	}
	for _, bad := range []string{"", "42 sh" + rest, "42 (sh)", "42 (sh) S 1 2", "42 (sh)" + strings.Replace(rest, "12345", "-1", 1)} {
		if st, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, st)
		}
	}
}

func TestTreeIsAProcessAndWhatDescendsFromIt(t *testing.T) {
	all := []Stat{{PID: 5, Parent: 4}, {PID: 1}, {PID: 2, Parent: 1}, {PID: 4, Parent: 2}, {PID: 3, Parent: 1}, {PID: 6, Parent: 2}}
	var got []int
	for _, st := range Tree(all, 2) {
		got = append(got, st.PID)
	}
	if !slices.Equal(got, []int{2, 4, 6, 5}) {
		t.Errorf("tree of 2: %v", got)
	}
	if tree := Tree(all, 99); tree != nil {
		t.Errorf("tree of a process that is not there: %v", tree)
	}
	if tree := Tree([]Stat{{PID: 0}, {PID: 7, Parent: 7}}, 7); len(tree) != 1 {
		t.Errorf("tree of its own parent: %v", tree)
	}
}

func TestAllHasThisProcess(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(st Stat) bool { return st.PID == os.Getpid() })
	if i < 0 || all[i].Parent != os.Getppid() || all[i].Resident == 0 {
		t.Errorf("this process among %d: %d", len(all), i)
	}
}

func TestBootID(t *testing.T) {
	id := BootID()
	if len(id) != 36 || id != BootID() {
		t.Errorf("boot id %q", id)
	}
}
