package supervisor

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/vm"
)

func TestHealthCheck(t *testing.T) {
	test := []string{"CMD", "true"}
	for name, tc := range map[string]struct {
		img  image.Health
		own  *vm.Health
		want vm.Health
	}{
		"nothing said": {
			image.Health{Test: test},
			nil,
			vm.Health{Test: test, Interval: 30 * time.Second, Timeout: 30 * time.Second, Retries: 3},
		},
		"the user's over the image's": {
			image.Health{Test: test, Interval: time.Second, Timeout: time.Second, StartPeriod: time.Second, Retries: 1},
			&vm.Health{Test: []string{"CMD", "false"}, Interval: time.Minute, Retries: 9},
			vm.Health{Test: []string{"CMD", "false"}, Interval: time.Minute, Timeout: time.Second, StartPeriod: time.Second, Retries: 9},
		},
		"an image that leaves no time between checks": {
			image.Health{Test: test, Interval: 1, Timeout: time.Second, Retries: 1},
			nil,
			vm.Health{Test: test, Interval: vm.MinInterval, Timeout: time.Second, Retries: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &life{image: image.Image{Config: image.Config{Health: &tc.img}}}
			l.Spec.Health = tc.own
			if diff := cmp.Diff(tc.want, l.healthCheck()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
