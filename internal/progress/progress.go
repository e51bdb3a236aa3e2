// Package progress tells a person what a long operation is doing: bars that
// redraw themselves on a terminal, one plain line per finished step elsewhere.
// Code that does the work sees only Reporter and Task and never asks where
// they go.
package progress

// Reporter starts tasks. It is safe for concurrent use.
type Reporter interface {
	// Task starts a step. total is in bytes; 0 where it is not known or the
	// step has no size.
	Task(name string, total int64) Task
	// Note prints one line that stays.
	Note(line string)
}

// Task is one step. Its methods are safe for concurrent use; Done is called once.
type Task interface {
	Add(bytes int64)
	Done(err error)
}

// Discard reports to nobody.
var Discard Reporter = discard{}

type discard struct{}

func (discard) Task(string, int64) Task { return discard{} }
func (discard) Note(string)             {}
func (discard) Add(int64)               {}
func (discard) Done(error)              {}
