package agentapi

import "testing"

func TestCheckPlace(t *testing.T) {
	for dir, ok := range map[string]bool{
		"/data": true, "/a b/['c']/ä": true, "/..data": true,
		"/:/host": false, "/data:ro": false, "/": false, "": false, "data": false, "name:/x": false,
		"/data/": false, "//data": false, "/a/../b": false, "/a\x00b": false, "/\xff": false,
	} {
		if err := CheckPlace(dir); (err == nil) != ok {
			t.Errorf("%q: %v", dir, err)
		}
	}
}
