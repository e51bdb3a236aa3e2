package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// identity is who a process is.
type identity struct {
	uid, gid uint32
	groups   []uint32 // further ones
	home     string
}

// account is a line of passwd(5); group is one of group(5).
type account struct {
	name     string
	uid, gid uint32
	home     string
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// findUser looks USER[:GROUP], names or numbers, up in the container's own
// files, as Podman and Docker do: a number need not be there, and is then of
// group 0; a name brings the groups that it is a member of, unless one is given.
func findUser(root *tree, spec string) (identity, error) {
	passwd, err := root.read("/etc/passwd")
	if err != nil {
		return identity{}, fmt.Errorf("look up user %q: %w", spec, err)
	}
	groups, err := root.read("/etc/group")
	if err != nil {
		return identity{}, fmt.Errorf("look up user %q: %w", spec, err)
	}
	return resolveUser(spec, string(passwd), string(groups))
}

func resolveUser(spec, passwd, groups string) (identity, error) {
	userName, groupName, _ := strings.Cut(spec, ":")
	if userName == "" {
		userName = "0"
	}
	who := identity{home: "/"}
	accounts, known := parsePasswd(passwd), parseGroup(groups)
	var name string
	if a, ok := findAccount(accounts, userName); ok {
		who.uid, who.gid, name = a.uid, a.gid, a.name
		if a.home != "" {
			who.home = a.home
		}
	} else if n, err := strconv.ParseUint(userName, 10, 31); err == nil {
		who.uid = uint32(n)
	} else {
		return who, fmt.Errorf("no user %q in the container's /etc/passwd", userName)
	}
	if groupName != "" {
		gid, err := findGroup(known, groupName)
		who.gid = gid
		return who, err
	}
	for _, g := range known {
		if name != "" && slices.Contains(g.members, name) && !slices.Contains(who.groups, g.gid) {
			who.groups = append(who.groups, g.gid)
		}
	}
	return who, nil
}

// findAccount prefers a name: one may consist of digits.
func findAccount(accounts []account, user string) (account, bool) {
	for _, a := range accounts {
		if a.name == user {
			return a, true
		}
	}
	n, err := strconv.ParseUint(user, 10, 31)
	for _, a := range accounts {
		if err == nil && a.uid == uint32(n) {
			return a, true
		}
	}
	return account{}, false
}

func findGroup(groups []group, name string) (uint32, error) {
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	n, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("no group %q in the container's /etc/group", name)
	}
	return uint32(n), nil
}

// parsePasswd leaves out lines that are none.
func parsePasswd(text string) []account {
	var all []account
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[0] == "" {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		a := account{name: f[0], uid: uint32(uid), gid: uint32(gid)}
		if len(f) > 5 {
			a.home = f[5]
		}
		all = append(all, a)
	}
	return all
}

func parseGroup(text string) []group {
	var all []group
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		g := group{name: f[0], gid: uint32(gid)}
		if len(f) > 3 && f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		all = append(all, g)
	}
	return all
}
