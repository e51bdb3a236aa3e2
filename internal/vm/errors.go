package vm

import "errors"

// The domain's sentinel errors. Everything that crosses a package boundary
// wraps one of them (or an error of the package it comes from), so that the
// command line can map it to an exit code and a hint.
var (
	// ErrNotFound: no VM has that id, unique id prefix or name.
	ErrNotFound = errors.New("no such VM")
	// ErrAmbiguous: an id prefix fits more than one VM.
	ErrAmbiguous = errors.New("ambiguous VM id")
	// ErrNameTaken: another VM has that name.
	ErrNameTaken = errors.New("name is taken")
	// ErrNotRunning: the operation needs a running VM.
	ErrNotRunning = errors.New("VM is not running")
	// ErrPaused: the operation needs a VM that is not paused.
	ErrPaused = errors.New("VM is paused")
	// ErrRunning: the operation needs a VM that has ended.
	ErrRunning = errors.New("VM is running")
	// ErrInvalid: the user's input cannot be used; the message says why.
	ErrInvalid = errors.New("invalid argument")
)
