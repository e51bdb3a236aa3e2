package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parseChanges reads what docker import and podman import take: "CMD …",
// "ENTRYPOINT …", "ENV K=V …", "EXPOSE …", "HEALTHCHECK …", "LABEL K=V …",
// "ONBUILD …", "STOPSIGNAL …", "USER …", "VOLUME …", "WORKDIR …", also as
// KEY=VALUE.
func parseChanges(changes []string) (v1.Config, error) {
	var c v1.Config
	for _, text := range changes {
		key, value := text, ""
		if i := strings.IndexAny(text, " ="); i > 0 {
			key, value = text[:i], strings.TrimSpace(text[i+1:])
		}
		if value == "" {
			return c, fmt.Errorf("%w: --change %q: it is an instruction and its value, as CMD [\"/bin/sh\"]", ErrReference, text)
		}
		if err := applyChange(&c, strings.ToUpper(key), value); err != nil {
			return c, fmt.Errorf("%w: --change %q: %w", ErrReference, text, err)
		}
	}
	return c, nil
}

func applyChange(c *v1.Config, key, value string) (err error) {
	switch key {
	case "CMD":
		c.Cmd, err = commandWords(value)
	case "ENTRYPOINT":
		c.Entrypoint, err = commandWords(value)
	case "ENV":
		var pairs []namedValue
		if pairs, err = parsePairs(value); err == nil {
			for _, v := range pairs {
				c.Env = setEnv(c.Env, v)
			}
		}
	case "LABEL":
		var pairs []namedValue
		if pairs, err = parsePairs(value); err == nil && c.Labels == nil {
			c.Labels = map[string]string{}
		}
		for _, v := range pairs {
			c.Labels[v.name] = v.value
		}
	case "EXPOSE":
		addAll(&c.ExposedPorts, strings.Fields(value))
	case "VOLUME":
		var words []string
		if words, err = listWords(value); err == nil {
			addAll(&c.Volumes, words)
		}
	case "HEALTHCHECK":
		c.Healthcheck, err = parseHealthcheck(value)
	case "ONBUILD":
		err = checkTrigger(value)
		c.OnBuild = append(c.OnBuild, value)
	case "STOPSIGNAL":
		c.StopSignal = value
	case "USER":
		c.User = value
	case "WORKDIR":
		c.WorkingDir = value
	default:
		return errors.New("the instruction is CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR")
	}
	return err
}

func addAll(set *map[string]struct{}, words []string) {
	if *set == nil {
		*set = map[string]struct{}{}
	}
	for _, w := range words {
		(*set)[w] = struct{}{}
	}
}

// commandWords reads a command in JSON, or leaves it to a shell.
func commandWords(value string) ([]string, error) {
	if !strings.HasPrefix(value, "[") {
		return []string{"/bin/sh", "-c", value}, nil
	}
	return listWords(value)
}

func listWords(value string) ([]string, error) {
	if !strings.HasPrefix(value, "[") {
		return strings.Fields(value), nil
	}
	var words []string
	if err := json.Unmarshal([]byte(value), &words); err != nil {
		return nil, fmt.Errorf("it is no JSON array of strings: %w", err)
	}
	return words, nil
}

// parseHealthcheck reads what a Dockerfile has after HEALTHCHECK: NONE, or
// [OPTIONS] CMD and a command.
// https://docs.docker.com/reference/dockerfile/#healthcheck
func parseHealthcheck(value string) (*v1.HealthConfig, error) {
	h := new(v1.HealthConfig)
	word, rest := cutWord(value)
	options := strings.HasPrefix(word, "--")
	for strings.HasPrefix(word, "--") {
		if err := setHealthOption(h, word); err != nil {
			return nil, err
		}
		word, rest = cutWord(rest)
	}
	switch kind := strings.ToUpper(word); {
	case kind == "NONE" && rest == "" && !options:
		h.Test = []string{kind}
	case kind == "CMD" && strings.HasPrefix(rest, "["):
		words, err := listWords(rest)
		if err != nil {
			return nil, err
		}
		if len(words) == 0 {
			return nil, errNoHealthcheck
		}
		h.Test = append([]string{kind}, words...)
	case kind == "CMD" && rest != "":
		h.Test = []string{"CMD-SHELL", rest}
	default:
		return nil, errNoHealthcheck
	}
	return h, nil
}

var errNoHealthcheck = errors.New("it is NONE alone, or [--interval=…] [--timeout=…] [--start-period=…] [--retries=…] CMD and a command")

func setHealthOption(h *v1.HealthConfig, option string) error {
	name, text, _ := strings.Cut(option, "=")
	var d *time.Duration
	switch name {
	case "--interval":
		d = &h.Interval
	case "--timeout":
		d = &h.Timeout
	case "--start-period":
		d = &h.StartPeriod
	case "--start-interval": // fcvm has no such interval
		d = new(time.Duration)
	case "--retries":
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return fmt.Errorf("%s: it is a number", option)
		}
		h.Retries = int(n)
		return nil
	default:
		return fmt.Errorf("%s: %w", option, errNoHealthcheck)
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 || v > 0 && v < time.Millisecond {
		return fmt.Errorf("%s: it is a duration of 1ms or more, as 30s", option)
	}
	*d = v
	return nil
}

func cutWord(text string) (word, rest string) {
	text = strings.Trim(text, blanks)
	i := strings.IndexAny(text, blanks)
	if i < 0 {
		return text, ""
	}
	return text[:i], strings.Trim(text[i:], blanks)
}

// checkTrigger refuses what no build can do when it begins from the image; what
// an instruction means is the builder's to know.
func checkTrigger(value string) error {
	switch word, rest := cutWord(value); strings.ToUpper(word) {
	case "ONBUILD", "FROM", "MAINTAINER":
		return fmt.Errorf("%s cannot be put off until a build", word)
	default:
		if rest == "" {
			return errors.New("it is an instruction and its value, as ONBUILD RUN make")
		}
	}
	return nil
}
