package main

import (
	"bytes"
	"fmt"
	"os"
)

// vmrunFault is a store in helper_vmrun, as Debian's 10.0.13 for amd64 has it: see
// minQEMU. The structure's offsets make the three instructions the only ones of
// their kind in the program.
var vmrunFault = patch{
	before: "\x44\x89\xab\xe0\x33\x00\x00", // mov %r13d,0x33e0(%rbx): env->error_code = event_inj_err
	old:    "\x89\xb3\x10\xd7\xff\xff",     // mov %esi,-0x28f0(%rbx): cs->exception_index = vector
	new:    "\x66\x0f\x1f\x44\x00\x00",     // nopw 0x0(%rax,%rax,1)
	after:  "\xc7\x83\xe4\x33\x00\x00",     // movl $0x0,0x33e4(%rbx): env->exception_is_int = 0
}

// patch is an instruction to replace by one of the same length, and what is around it.
type patch struct{ before, old, new, after string }

// apply changes a program. It returns false if there is no such place in it, or more
// than one: then it is another build, which stays as it is.
func (p patch) apply(path string) (bool, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	place := []byte(p.before + p.old + p.after)
	at := bytes.Index(program, place)
	if at < 0 || bytes.Count(program, place) != 1 {
		return false, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	if _, err := f.WriteAt([]byte(p.new), int64(at+len(p.before))); err != nil {
		_ = f.Close()
		return false, fmt.Errorf("mend %s: %w", path, err)
	}
	return true, f.Close()
}
