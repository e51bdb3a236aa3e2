package vm

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"math/big"
	"regexp"
)

// IDLength is the number of hexadecimal digits of an id.
const IDLength = 12

var (
	idPattern   = regexp.MustCompile(`^[0-9a-f]{12}$`)
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)
)

// NewID returns a random id.
func NewID() string {
	var b [IDLength / 2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// ValidID reports whether s has the form of an id; only such names are taken
// for a VM's directory.
func ValidID(s string) bool { return idPattern.MatchString(s) }

// CheckName refuses names that could not be a hostname's start, a file name
// or an argument.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w: name %q: 1 to 63 letters, digits, '_', '.' and '-', the first a letter or digit", ErrInvalid, name)
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
