package upstreams

import "testing"

func TestActions(t *testing.T) {
	if len(actions) != 91 {
		t.Errorf("%d actions, backend 12.201.4 has 91", len(actions))
	}
}
