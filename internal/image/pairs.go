package image

import (
	"errors"
	"strings"
)

const blanks = " \t\r\n"

// namedValue is one of ENV's variables or of LABEL's labels.
type namedValue struct{ name, value string }

// parsePairs reads what a Dockerfile has after ENV and LABEL: NAME=VALUE, any
// number of them, or the old form, one name and the rest as its value. Quotes
// and backslashes keep blanks together, as in a shell, and go; variables stay.
// https://docs.docker.com/reference/dockerfile/#env
func parsePairs(text string) ([]namedValue, error) {
	words := quotedWords(text)
	if len(words) > 0 && !strings.Contains(words[0], "=") {
		rest := strings.Trim(strings.TrimPrefix(strings.TrimLeft(text, blanks), words[0]), blanks)
		if rest == "" {
			return nil, errNoPair
		}
		words = []string{words[0] + "=" + rest}
	}
	var out []namedValue
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok {
			return nil, errNoPair
		}
		name, err := unquote(name)
		if err != nil {
			return nil, err
		}
		if value, err = unquote(value); err != nil {
			return nil, err
		}
		if name == "" {
			return nil, errNoPair
		}
		out = append(out, namedValue{name, value})
	}
	return out, nil
}

var errNoPair = errors.New("it is NAME=VALUE, one or more; quote a value with blanks in it")

// quotedWords splits at blanks that are not quoted, and leaves the quotes.
func quotedWords(text string) []string {
	var words []string
	start, quote := -1, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		if quote == 0 && strings.IndexByte(blanks, c) >= 0 {
			if start >= 0 {
				words = append(words, text[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case c == '\\' && quote != '\'':
			i++
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		}
	}
	if start >= 0 {
		words = append(words, text[start:])
	}
	return words
}

// unquote takes quotes and backslashes away, as a shell would.
func unquote(word string) (string, error) {
	var out strings.Builder
	quote := byte(0)
	for i := 0; i < len(word); i++ {
		c := word[i]
		switch {
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == '\\' && quote != '\'' && i+1 < len(word):
			i++
			if quote == '"' && strings.IndexByte(`"\$`, word[i]) < 0 {
				out.WriteByte(c)
			}
			out.WriteByte(word[i])
		default:
			out.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", errors.New("a quote in it has no end")
	}
	return out.String(), nil
}

// setEnv sets a variable of an environment.
func setEnv(env []string, v namedValue) []string {
	text := v.name + "=" + v.value
	for i, e := range env {
		if strings.HasPrefix(e, v.name+"=") {
			env[i] = text
			return env
		}
	}
	return append(env, text)
}
