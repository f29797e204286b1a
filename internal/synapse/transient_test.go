package synapse

import (
	"fmt"
	"reflect"
	"testing"
	"time"
)

// What systemd is told, as it would show it: a command whose failure is one, and no word of which is replaced by what is in the environment.
func TestTransientProperties(t *testing.T) {
	unit := Transient{Unit: "some.service", Description: "Some work", Command: []string{"/bin/true", "--config", "/etc/$HOME.yaml"},
		After: []string{"docker.service"}, StopTimeout: 5 * time.Minute}
	got := map[string]string{}
	for _, property := range unit.properties() {
		got[property.Name] = fmt.Sprint(property.Value.Value())
	}
	want := map[string]string{
		"Description":      "Some work",
		"Type":             "notify",
		"ExecStart":        "[{/bin/true [/bin/true --config /etc/$$HOME.yaml] false}]",
		"After":            "[docker.service]",
		"CollectMode":      "inactive-or-failed",
		"TimeoutStartUSec": "18446744073709551615",
		"TimeoutStopUSec":  "300000000",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
