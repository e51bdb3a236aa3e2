// Package volume is what a container sees besides its image: it reads -v and
// --mount, looks at what they name on the host, keeps named volumes, and makes
// the disks that a VM's mounts are on. How a live share is served is package
// share's.
package volume

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// Mode says what a directory of the host's becomes in the guest (--map-mode).
type Mode string

// The two modes.
const (
	ModeLive  Mode = "live"  // a live share
	ModeBlock Mode = "block" // a disk made of it
)

// Sizes of volumes, MiB: ext4 as it is made here has no 64-bit block numbers.
const (
	MinSizeMiB     = 16
	MaxSizeMiB     = 8 << 20
	DefaultSizeMiB = 16 << 10 // of one that is made by -v; it costs what is written
)

const maxName = 128 // characters

// namePattern is a volume's name, as Docker has it.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// CheckName refuses what is not a volume's name.
func CheckName(name string) error {
	if len(name) > maxName || !namePattern.MatchString(name) {
		return fmt.Errorf("%w: volume %q: a name has 1 to %d letters, digits, '_', '.' and '-', the first a letter or digit", vm.ErrInvalid, name, maxName)
	}
	return nil
}

// request is a mount as it was typed: what a source that is a path is shows only
// on the host.
type request struct {
	vm.Mount
	path bool // Source is a path on the host, and Kind may not be known yet
	bind bool // a file is shared, whatever is in it
}

// parseVolume reads an argument of -v: HOST:GUEST[:OPTIONS], NAME:GUEST[:OPTIONS]
// or GUEST. As in Docker a source with a slash, or a dot in front, is a path.
func parseVolume(arg string) (request, error) {
	bad := func(format string, a ...any) (request, error) {
		return request{}, fmt.Errorf("%w: -v %q: %s", vm.ErrInvalid, arg, fmt.Sprintf(format, a...))
	}
	parts := strings.Split(arg, ":")
	var r request
	switch len(parts) {
	case 1:
		r.Kind, r.Target = vm.MountAnonymous, parts[0]
	case 2, 3:
		r.Source, r.Target = parts[0], parts[1]
		if r.Source == "" {
			return bad("nothing is before the first colon; it is HOST:GUEST[:ro] or NAME:GUEST[:ro]")
		}
	default:
		return bad("it is HOST:GUEST[:ro]; paths with colons can be given to --mount")
	}
	if len(parts) == 3 {
		if err := r.setOptions(parts[2]); err != nil {
			return bad("%v", err)
		}
	}
	if r.Kind == "" {
		if strings.Contains(r.Source, "/") || strings.HasPrefix(r.Source, ".") {
			r.path = true
		} else if r.Kind = vm.MountVolume; CheckName(r.Source) != nil {
			return bad("%q is neither a path nor a volume's name", r.Source)
		}
	}
	if r.NoCopy && r.path {
		return bad("nocopy is for volumes: nothing is copied into what is the host's")
	}
	return r.checked("-v " + strconv.Quote(arg))
}

// setOptions takes the options of a -v.
func (r *request) setOptions(list string) error {
	var rw bool
	for o := range strings.SplitSeq(list, ",") {
		switch {
		case o == "ro":
			r.ReadOnly = true
		case o == "rw":
			rw = true
		case o == "nocopy":
			r.NoCopy = true
		case slices.Contains(ignoredOptions, o):
		case slices.Contains(refusedOptions, o):
			return refuse(o)
		default:
			return fmt.Errorf("option %q: it is ro, rw or nocopy; what Docker and Podman know besides is accepted where it means nothing here", o)
		}
	}
	if rw && r.ReadOnly {
		return errors.New("it is either ro or rw")
	}
	return nil
}

// Options of Docker's and Podman's mounts besides those that are honoured.
var (
	// ignoredOptions ask for what is so, or for what no guest can tell: it has no
	// SELinux labels, and its mounts are nobody else's.
	ignoredOptions = []string{
		"z", "Z", "cached", "delegated", "consistent", "copy", "exec", "bind", "rbind",
		"private", "rprivate", "shared", "rshared", "slave", "rslave",
	}
	refusedOptions = []string{
		"U", "chown", "O", "idmap", "noexec", "nosuid", "nodev", "suid", "dev", "unbindable", "runbindable", "no-dereference",
	}
	// tmpfsOptions are those that only a tmpfs can have.
	tmpfsOptions = []string{"exec", "noexec", "suid", "nosuid", "dev", "nodev"}
	// ignoredKeys are those of --mount that mean as little, and their values.
	ignoredKeys = map[string][]string{
		"consistency":      {"consistent", "cached", "delegated", "default"},
		"bind-propagation": {"private", "rprivate", "shared", "rshared", "slave", "rslave"},
		"relabel":          {"shared", "private"},
	}
)

func refuse(option string) error {
	return fmt.Errorf("option %s cannot be honoured: no mount of this kind has it here; leave it out", option)
}

// mountKeys are Docker's names and their short forms.
var mountKeys = map[string]string{
	"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "tmpfs-size": "size", "volume-size": "size",
	"volume-nocopy": "nocopy",
}

// parseMount reads an argument of --mount: KEY=VALUE pairs, separated by commas, in
// quotes where a value holds one (encoding/csv).
func parseMount(arg string) (request, error) {
	bad := func(format string, a ...any) (request, error) {
		return request{}, fmt.Errorf("%w: --mount %q: %s", vm.ErrInvalid, arg, fmt.Sprintf(format, a...))
	}
	values, options, err := mountValues(arg)
	if err != nil {
		return bad("%v", err)
	}
	var r request
	kind, ok := values["type"]
	if !ok {
		kind = "volume" // as in Docker
	}
	r.Source, r.Target = values["source"], values["target"]
	_, saysRO := values["readonly"]
	_, saysRW := values["rw"]
	if r.ReadOnly, err = takeBool(values, "readonly"); err != nil {
		return bad("%v", err)
	}
	rw, err := takeBool(values, "rw")
	if err != nil {
		return bad("%v", err)
	}
	if saysRO && saysRW && rw == r.ReadOnly {
		return bad("it is either readonly or rw")
	}
	if saysRW {
		r.ReadOnly = !rw
	}
	delete(values, "type")
	delete(values, "source")
	delete(values, "target")
	if err := r.setKind(kind, values, options); err != nil {
		return bad("%v", err)
	}
	for key := range values {
		return bad("%s is not for type=%s", key, kind)
	}
	return r.checked("--mount " + strconv.Quote(arg))
}

// mountValues reads the pairs of a --mount, but for those that mean nothing here,
// and what is no pair.
func mountValues(arg string) (values map[string]string, options []string, err error) {
	fields, err := csv.NewReader(strings.NewReader(arg)).Read()
	if err != nil {
		return nil, nil, errors.New("it is type=bind|volume|tmpfs|disk,source=…,target=…")
	}
	values = map[string]string{}
	for _, f := range fields {
		key, value, given := strings.Cut(f, "=")
		if long, ok := mountKeys[key]; ok {
			key = long
		}
		known, ignored := ignoredKeys[key]
		switch {
		case !given && slices.Contains(slices.Concat(ignoredOptions, refusedOptions), key):
			options = append(options, key)
			continue
		case slices.Contains(refusedOptions, key):
			return nil, nil, refuse(key)
		case !given && slices.Contains([]string{"readonly", "rw", "nocopy"}, key):
			value = "true"
		case !given:
			return nil, nil, fmt.Errorf("%q has no value", f)
		case ignored && !slices.Contains(known, value):
			return nil, nil, fmt.Errorf("%s: it is one of %s", f, strings.Join(known, ", "))
		case ignored:
			continue
		}
		if _, twice := values[key]; twice {
			return nil, nil, fmt.Errorf("%s is given twice", key)
		}
		values[key] = value
	}
	return values, options, nil
}

// takeBool takes a value that is true or false; false if it is not there.
func takeBool(values map[string]string, key string) (bool, error) {
	text, ok := values[key]
	if !ok {
		return false, nil
	}
	delete(values, key)
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%s=%s: it is true or false", key, text)
	}
	return v, nil
}

// setKind takes what is left of a --mount and is for this type.
func (r *request) setKind(kind string, values map[string]string, options []string) error {
	if kind == "tmpfs" {
		return r.setTmpfs(values, options)
	}
	if i := slices.IndexFunc(options, func(o string) bool { return slices.Contains(refusedOptions, o) }); i >= 0 {
		return refuse(options[i])
	}
	take := func(key string) string {
		v := values[key]
		delete(values, key)
		return v
	}
	switch kind {
	case "bind":
		r.path, r.bind = true, true
		switch mode := Mode(take("map-mode")); mode {
		case "":
		case ModeLive:
			r.Kind = vm.MountShare
		case ModeBlock:
			r.Kind = vm.MountBlock
		default:
			return fmt.Errorf("map-mode=%s: it is live or block", mode)
		}
	case "disk":
		r.Kind, r.path = vm.MountDisk, true
	case "volume":
		return r.setVolume(values, take("size"))
	default:
		return fmt.Errorf("type=%s: it is bind, volume, tmpfs or disk", kind)
	}
	if r.Source == "" {
		return fmt.Errorf("type=%s needs a source", kind)
	}
	return nil
}

// setTmpfs takes what is for a tmpfs, for which Podman makes the mount that is
// asked for.
func (r *request) setTmpfs(values map[string]string, given []string) error {
	if r.Source != "" {
		return errors.New("a tmpfs has no source")
	}
	r.Kind = vm.MountTmpfs
	var options []string
	if r.ReadOnly {
		options = append(options, "ro")
	}
	for _, o := range given {
		switch {
		case slices.Contains(tmpfsOptions, o):
			options = append(options, o)
		case slices.Contains(refusedOptions, o):
			return refuse(o)
		}
	}
	for _, key := range []string{"size", "tmpfs-mode"} {
		v, option := values[key], strings.TrimPrefix(key, "tmpfs-")
		delete(values, key)
		if v == "" {
			continue
		}
		if !regexp.MustCompile(`^[0-9]+[kKmMgG]?$`).MatchString(v) {
			return fmt.Errorf("%s=%s: it is a number", key, v)
		}
		options = append(options, option+"="+v)
	}
	r.Options = strings.Join(options, ",")
	return nil
}

// setVolume takes what is for a volume, which has a name or not.
func (r *request) setVolume(values map[string]string, size string) (err error) {
	if r.NoCopy, err = takeBool(values, "nocopy"); err != nil {
		return err
	}
	if r.Source == "" {
		r.Kind = vm.MountAnonymous
		if size != "" {
			return errors.New("a volume without a name is on the VM's own disk, and as large as --scratch-size lets it be: leave out the size, or give it a name (source=NAME)")
		}
		return nil
	}
	r.Kind = vm.MountVolume
	if err := CheckName(r.Source); err != nil {
		return err
	}
	return r.setSize(size)
}

func (r *request) setSize(text string) error {
	if text == "" {
		return nil
	}
	mib, err := ParseSize(text)
	r.SizeMiB = mib
	return err
}

// sizePattern: a number with a unit.
var sizePattern = regexp.MustCompile(`^([0-9]{1,8})([mMgGtT])(?:i?[bB])?$`)

// ParseSize reads the size of a volume: 512m, 10g.
func ParseSize(text string) (mib int, err error) {
	g := sizePattern.FindStringSubmatch(text)
	if g == nil {
		return 0, fmt.Errorf("size %q: it is a number with a unit, as 512m or 10g", text)
	}
	n, err := strconv.Atoi(g[1])
	if err != nil {
		return 0, err
	}
	n <<= map[string]int{"m": 0, "g": 10, "t": 20}[strings.ToLower(g[2])]
	if n < MinSizeMiB || n > MaxSizeMiB {
		return 0, fmt.Errorf("size %s: a volume has %d MiB to %d TiB", text, MinSizeMiB, MaxSizeMiB>>20)
	}
	return n, nil
}

// checked refuses what no mount has, and cleans the target.
func (r request) checked(what string) (request, error) {
	if err := vm.CheckTarget(r.Target); err != nil {
		return request{}, fmt.Errorf("%s: %w", what, err)
	}
	if strings.ContainsRune(r.Source, 0) {
		return request{}, fmt.Errorf("%w: %s: the source holds a zero byte", vm.ErrInvalid, what)
	}
	if r.ReadOnly && r.Kind == vm.MountAnonymous {
		return request{}, fmt.Errorf("%w: %s: nothing could ever be in it", vm.ErrInvalid, what)
	}
	r.Target = path.Clean(r.Target)
	return r, nil
}
