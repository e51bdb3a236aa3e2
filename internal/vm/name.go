package vm

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"math/big"
	"regexp"
	"strings"
)

// IDLength is the number of hexadecimal digits of an id.
const IDLength = 12

const maxName = 63 // characters

// namePattern has no bound of its own: as long a repetition takes a noticeable part
// of the start of every command to compile.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// NewID returns a random id.
func NewID() string {
	var b [IDLength / 2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// ValidID reports whether s has the form of an id; only such names are taken
// for a VM's directory.
func ValidID(s string) bool { return len(s) == IDLength && strings.Trim(s, "0123456789abcdef") == "" }

// CheckName refuses names that could not be a hostname's start, a file name
// or an argument.
func CheckName(name string) error {
	if len(name) > maxName || !namePattern.MatchString(name) {
		return fmt.Errorf("%w: name %q: 1 to %d letters, digits, '_', '.' and '-', the first a letter or digit", ErrInvalid, name, maxName)
	}
	return nil
}

var (
	adjectives = []string{
		"agile", "amber", "bold", "brave", "brisk", "calm", "clear", "clever", "crisp", "deft", "eager", "early",
		"fair", "fleet", "fond", "frank", "gentle", "glad", "golden", "grand", "keen", "kind", "light", "lively",
		"lucid", "merry", "mild", "neat", "nimble", "noble", "plain", "proud", "quick", "quiet", "rapid", "ready",
		"sharp", "silent", "sober", "solid", "spry", "still", "sunny", "swift", "tidy", "vivid", "warm", "wise",
	}
	animals = []string{
		"badger", "bison", "crane", "crow", "deer", "dove", "duck", "eagle", "egret", "falcon", "finch", "fox",
		"gecko", "goose", "hare", "hawk", "heron", "ibis", "jay", "kite", "lark", "lynx", "marten", "mole",
		"moose", "newt", "otter", "owl", "panda", "pike", "plover", "puffin", "quail", "raven", "robin", "seal",
		"shrew", "skua", "snipe", "stoat", "stork", "swan", "tern", "toad", "trout", "vole", "wolf", "wren",
	}
)

// NewName makes a name for a VM that was given none.
func NewName() string { return pick(adjectives) + "-" + pick(animals) }

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		return words[0] // unreachable: crypto/rand's reader does not fail
	}
	return words[n.Int64()]
}
