// Package vmmtest is the conformance suite of VMM drivers: what package vmm
// promises, tried with real machines. Every driver runs it from a test of its
// own.
package vmmtest

import (
	"testing"

	"github.com/fcvm/fcvm/internal/vmm"
)

// Run tries a driver. The machines boot guest; see FindGuest. pages is for
// drivers that take memory from a server; nil: this one does not.
func Run(t *testing.T, driver vmm.Driver, guest Guest, pages PageServer) {
	s := &suite{driver: driver, guest: guest, caps: driver.Capabilities(), pages: pages}
	a := driver.Probe(t.Context())
	t.Logf("%s %s (%s): %s", driver.Name(), a.Version, a.Features, a.Reason)
	if !a.Usable {
		t.Fatalf("%s is not usable: %s", driver.Name(), a.Reason)
	}
	for _, c := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"Life", s.testLife},
		{"Balloon", s.testBalloon},
		{"Kill", s.testKill},
		{"UnexpectedDeath", s.testUnexpectedDeath},
		{"KernelPanic", s.testKernelPanic},
		{"MissingFile", s.testMissingFile},
		{"BadKernel", s.testBadKernel},
		{"Cancelled", s.testCancelled},
		{"Snapshot", s.testSnapshot},
		{"SnapshotAgain", s.testSnapshotAgain},
		{"RestoreMany", s.testRestoreMany},
		{"RestoreBad", s.testRestoreBad},
		{"PageServer", s.testPageServer},
		{"SnapshotKilled", s.testSnapshotKilled},
		{"Socket", s.testSocketNetwork},
		{"Metadata", s.testMetadata},
		{"Unsupported", s.testUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFiles(t)
			t.Cleanup(func() { checkLeaks(t, before) }) // the last of them
			c.f(t)
		})
	}
}

type suite struct {
	driver vmm.Driver
	guest  Guest
	caps   vmm.Capabilities
	pages  PageServer
}
