package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/events"
)

func TestEventsOfOneVM(t *testing.T) {
	h := newHost(t)
	web := h.running("web").Record()
	h.running("db")
	log := events.New(h.layout().Events())
	for _, e := range []events.Event{
		{Kind: events.Created, ID: "0123456789ab", Name: "gone"},
		{Kind: events.Removed, ID: "0123456789ab", Name: "gone"},
		{Kind: events.Renamed, ID: web.ID, Name: "shop", Detail: "web"},
	} {
		if err := log.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]struct {
		id   string
		note bool
	}{
		"web": {web.ID, false}, web.ID: {web.ID, false}, web.ID[:8]: {web.ID, false},
		"gone": {"0123456789ab", true}, "0123456789ab": {"0123456789ab", true}, "never": {"", true},
	} {
		code, out, errs := h.fcvm("events", "--follow=false", "--vm", ref)
		if note := strings.Contains(errs, "no VM "+ref); code != 0 || note != want.note {
			t.Errorf("%s: code %d, stderr %q", ref, code, errs)
		}
		if (out == "") != (want.id == "") {
			t.Errorf("%s: got %q", ref, out)
		}
		for line := range strings.Lines(out) {
			var e events.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.ID != want.id {
				t.Errorf("%s: %s, %v", ref, line, err)
			}
		}
		if want.id == web.ID && !strings.Contains(out, "renamed") {
			t.Errorf("%s: what happened under another name is missing: %s", ref, out)
		}
	}
}
