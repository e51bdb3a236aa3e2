package image

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestParseChanges(t *testing.T) {
	for _, tt := range []struct {
		changes []string
		want    v1.Config
	}{
		{[]string{"HEALTHCHECK NONE"}, v1.Config{Healthcheck: &v1.HealthConfig{Test: []string{"NONE"}}}},
		{[]string{"healthcheck cmd curl -f http://localhost/ || exit 1"}, v1.Config{Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "curl -f http://localhost/ || exit 1"}}}},
		{[]string{`HEALTHCHECK --interval=5m  --timeout=3s --start-period=1m30s --start-interval=1s --retries=4 CMD ["curl", "-f", "http://localhost/"]`}, v1.Config{
			Healthcheck: &v1.HealthConfig{
				Test: []string{"CMD", "curl", "-f", "http://localhost/"}, Interval: 5 * time.Minute, Timeout: 3 * time.Second, StartPeriod: 90 * time.Second, Retries: 4,
			},
		}},
		{[]string{"HEALTHCHECK CMD first", "HEALTHCHECK=CMD last"}, v1.Config{Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "last"}}}},
		{[]string{"ONBUILD RUN make", "ONBUILD=COPY . /src"}, v1.Config{OnBuild: []string{"RUN make", "COPY . /src"}}},
	} {
		got, err := parseChanges(tt.changes)
		if d := cmp.Diff(tt.want, got); err != nil || d != "" {
			t.Errorf("%q: %v\n%s", tt.changes, err, d)
		}
	}
	for _, bad := range []string{
		"HEALTHCHECK", "HEALTHCHECK NONE x", "HEALTHCHECK --interval=1s NONE", "HEALTHCHECK CMD", "HEALTHCHECK CMD []", "HEALTHCHECK CMD [1]", "HEALTHCHECK curl",
		"HEALTHCHECK --interval=1s", "HEALTHCHECK --interval CMD x", "HEALTHCHECK --interval=-1s CMD x", "HEALTHCHECK --interval=5 CMD x", "HEALTHCHECK --timeout=1us CMD x",
		"HEALTHCHECK --retries=-1 CMD x", "HEALTHCHECK --odd=1 CMD x", "ONBUILD", "ONBUILD RUN", "ONBUILD ONBUILD RUN x", "ONBUILD from scratch",
	} {
		if c, err := parseChanges([]string{bad}); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %+v, %v", bad, c, err)
		}
	}
}
