package setup

import (
	"slices"
	"strings"
)

const (
	familyDebian = "debian"
	familyUbuntu = "ubuntu"
	defaultSuite = "bookworm"
)

// release is a release of a distribution whose packages make a guest root.
type release struct {
	family string // familyDebian, familyUbuntu
	suite  string // its code name
}

// Releases that have no netavark, or a Podman that cannot run an image from a
// read-only root.
func (r release) tooOld() bool {
	return slices.Contains([]string{"buster", "bullseye", "bionic", "focal", "jammy", "kinetic"}, r.suite)
}

// components that hold the packages of a guest root.
func (r release) components() []string {
	if r.family == familyUbuntu {
		return []string{"main", "universe"}
	}
	return []string{"main"}
}

// keyring is what its archive is signed with, and the package that has it.
func (r release) keyring() (path, pkg string) {
	pkg = r.family + "-archive-keyring"
	if r.family == familyUbuntu {
		return "/usr/share/keyrings/" + pkg + ".gpg", "ubuntu-keyring"
	}
	return "/usr/share/keyrings/" + pkg + ".gpg", pkg
}

// hostRelease reads os-release(5). A host that is neither Debian nor Ubuntu,
// nor made of one, gives a release without a suite.
func hostRelease(osRelease []byte) release {
	fields := map[string]string{}
	for line := range strings.Lines(string(osRelease)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok {
			fields[key] = strings.Trim(value, `"'`)
		}
	}
	switch {
	case fields["ID"] == familyDebian:
		return release{familyDebian, fields["VERSION_CODENAME"]}
	case fields["ID"] == familyUbuntu:
		return release{familyUbuntu, fields["VERSION_CODENAME"]}
	case fields["UBUNTU_CODENAME"] != "": // made of Ubuntu
		return release{familyUbuntu, fields["UBUNTU_CODENAME"]}
	default:
		return release{}
	}
}

// guestRelease is the release to build: the one asked for, else the host's
// own where that will do.
func guestRelease(host release, suite string) release {
	switch {
	case suite == "" && (host.suite == "" || host.tooOld()):
		return release{familyDebian, defaultSuite}
	case suite == "":
		return host
	default:
		return release{familyOf(suite, host.family), suite}
	}
}

// familyOf tells by the name of a suite; a name that is too new to be known
// is of the host's family.
func familyOf(suite, host string) string {
	switch {
	case slices.Contains([]string{
		"bullseye", "bookworm", "trixie", "forky", "duke", "sid", "oldstable", "stable", "testing", "unstable",
	}, suite):
		return familyDebian
	case slices.Contains([]string{"focal", "jammy", "noble", "plucky", "questing", "resolute"}, suite), host == familyUbuntu:
		return familyUbuntu
	default:
		return familyDebian
	}
}
