package image

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestParseConfigVolumes(t *testing.T) {
	for name, tc := range map[string]struct {
		volumes, want []string
		err           error
	}{
		"none":                       {},
		"sorted":                     {volumes: []string{"/b", "/a"}, want: []string{"/a", "/b"}},
		"written in several ways":    {volumes: []string{"/a/", "/a", "//a/b/.."}, want: []string{"/a"}},
		"relative":                   {volumes: []string{"logs"}, want: []string{"/logs"}},
		"a list that was no JSON":    {volumes: []string{"['/data']"}, want: []string{"/['/data']"}},
		"the guest's root":           {volumes: []string{"/:/host"}, err: ErrUnsafe},
		"the guest's root, relative": {volumes: []string{"..:/host"}, err: ErrUnsafe},
		"options":                    {volumes: []string{"/data:exec"}, err: ErrUnsafe},
		"a zero byte":                {volumes: []string{"/a\x00b"}, err: ErrUnsafe},
		"the root":                   {volumes: []string{"/"}, err: ErrUnsafe},
		"what leads to the root":     {volumes: []string{"a/../.."}, err: ErrUnsafe},
		"nothing":                    {volumes: []string{""}, err: ErrUnsafe},
	} {
		t.Run(name, func(t *testing.T) {
			cf := v1.ConfigFile{OS: "linux", Architecture: "amd64", Config: v1.Config{Volumes: map[string]struct{}{}}}
			for _, v := range tc.volumes {
				cf.Config.Volumes[v] = struct{}{}
			}
			raw, err := json.Marshal(cf)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseConfig(raw, 0)
			if !errors.Is(err, tc.err) || !slices.Equal(got.config.Volumes, tc.want) {
				t.Errorf("%q, %v; want %q, %v", got.config.Volumes, err, tc.want, tc.err)
			}
			if tc.err != nil && err != nil && !strings.Contains(err.Error(), "volume") {
				t.Errorf("%v does not say what is wrong", err)
			}
		})
	}
}
