package volume

import (
	"path/filepath"
	"testing"

	"luksmediad/internal/config"
)

// Whatever is configured, the record of a volume is found, and nothing else of the state is taken for one.
func TestRecorded(t *testing.T) {
	v := New(&config.Config{Volume: config.Volume{Name: "v"}}, Paths{State: filepath.Join(t.TempDir(), "state")}, nil)
	for _, name := range []string{v.movesName(), v.creationName(), v.adoptionName(), v.knownName()} {
		if err := v.states.Save(name, 1, map[string]any{}); err != nil {
			t.Fatal(err)
		}
	}
	if Recorded(v.paths) {
		t.Error("there is no record")
	}
	if err := v.saveRecord(&Record{}); err != nil || !Recorded(v.paths) {
		t.Errorf("the record is not found: %v", err)
	}
}
