package volume

import "testing"

// A directory that is said to be one store stands in the way of no other, which is new. Any other one does.
func TestClaimed(t *testing.T) {
	for _, test := range []struct {
		folder, name string
		want         bool
	}{
		{"pgdata", "pgdata", true},
		{"old/pgdata", "old", true},
		{".", "pgdata", true},
		{"pgdata", "pgdata-old", false},
		{"pgdata-old", "pgdata", false},
		{"old/pgdata", "pgdata", false},
	} {
		if got := claimed(map[string]string{"pg": test.folder}, test.name); got != test.want {
			t.Errorf("%s becomes a store, %s: %t", test.folder, test.name, got)
		}
	}
	if claimed(nil, "pgdata") {
		t.Error("claimed by nobody")
	}
}
