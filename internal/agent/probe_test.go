package agent

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
)

func TestProbeHTTP(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		w.Header().Set("Location", "http://localhost:1/") // where nobody is
		w.WriteHeader(code)
	}))
	defer srv.Close()
	for code, ready := range map[string]bool{"200": true, "204": true, "301": true, "307": true, "399": true, "400": false, "404": false, "503": false} {
		if err := probeHTTP(t.Context(), srv.URL+"/"+code); (err == nil) != ready {
			t.Errorf("%s: %v", code, err)
		}
	}
}
