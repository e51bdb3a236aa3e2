package setup

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHostSources(t *testing.T) {
	dir := t.TempDir()
	list := writeFile(t, filepath.Join(dir, "mirrors"), "# first\nhttp://listed/debian\tpriority:1\nhttp://second\n")
	writeFile(t, filepath.Join(dir, "sources.list"), `# a comment
deb [arch=amd64 signed-by=/k.gpg] http://one/debian bookworm main contrib # more
deb-src http://one/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb http://one/debian bookworm-backports main
deb http://third.party/apt stable main
deb http://short
deb [broken http://x bookworm main
`)
	writeFile(t, filepath.Join(dir, "sources.list.d", "a.sources"), `# deb822
Types: deb deb-src
URIs: http://two/debian
Suites: bookworm bookworm-updates
Components: main
 non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: mirror+file:`+list+`
Suites: bookworm-security
Components: main

Types: deb
URIs: http://off
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://inline.key
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQ
`)
	writeFile(t, filepath.Join(dir, "sources.list.d", "b.list"), "deb http://two/debian bookworm main\ndeb http://two/debian bookworm main\n")
	writeFile(t, filepath.Join(dir, "sources.list.d", "ignored.save"), "deb http://saved bookworm main\n")

	var got []string
	for _, a := range hostSources(dir, "bookworm", "trixie") {
		got = append(got, a.String())
	}
	want := []string{
		"deb [signed-by=/k.gpg] http://one/debian trixie main contrib",
		"deb http://two/debian trixie main",
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://two/debian trixie main non-free",
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://two/debian trixie-updates main non-free",
		"deb http://listed/debian trixie-security main",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := hostSources(filepath.Join(dir, "absent"), "bookworm", "bookworm"); got != nil {
		t.Errorf("from nothing: %v", got)
	}
}

func TestNetworkOptions(t *testing.T) {
	got := networkOptions([]byte(`APT::Architecture "amd64";
Acquire::http "";
Acquire::http::Proxy "http://proxy:3128";
Acquire::https::Proxy::local "DIRECT";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
Acquire::http::Dl-Limit "";
`))
	want := `Acquire::http::Proxy "http://proxy:3128"; Acquire::https::Proxy::local "DIRECT"; Acquire::Check-Valid-Until "false";`
	if strings.Join(got, " ") != want {
		t.Errorf("got %q", got)
	}
}

func TestGuestRelease(t *testing.T) {
	for _, tc := range []struct {
		name, osRelease, suite string
		want                   release
	}{
		{"debian", "ID=debian\nVERSION_CODENAME=trixie\n", "", release{familyDebian, "trixie"}},
		{"old debian", "ID=debian\nVERSION_CODENAME=bullseye\n", "", release{familyDebian, "bookworm"}},
		{"ubuntu", "ID=ubuntu\nVERSION_CODENAME=\"noble\"\n", "", release{familyUbuntu, "noble"}},
		{"old ubuntu", "ID=ubuntu\nVERSION_CODENAME=jammy\n", "", release{familyDebian, "bookworm"}},
		{"mint", "ID=linuxmint\nUBUNTU_CODENAME=noble\n", "", release{familyUbuntu, "noble"}},
		{"fedora", "ID=fedora\n", "", release{familyDebian, "bookworm"}},
		{"none", "", "", release{familyDebian, "bookworm"}},
		{"asked", "ID=debian\nVERSION_CODENAME=bookworm\n", "trixie", release{familyDebian, "trixie"}},
		{"debian on ubuntu", "ID=ubuntu\nVERSION_CODENAME=noble\n", "trixie", release{familyDebian, "trixie"}},
		{"ubuntu on debian", "ID=debian\nVERSION_CODENAME=bookworm\n", "noble", release{familyUbuntu, "noble"}},
		{"new ubuntu", "ID=ubuntu\nVERSION_CODENAME=noble\n", "zesty", release{familyUbuntu, "zesty"}},
	} {
		if got := guestRelease(hostRelease([]byte(tc.osRelease)), tc.suite); got != tc.want {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}
