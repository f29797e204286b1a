package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const canary = "canary-7b1f"

// leaks reports whether s shows the canary in any of the ways in which
// printers show bytes.
func leaks(s string) bool {
	for _, form := range []string{"%s", "%x", "%X", "%d", "%v", "%q", "%#v", "%08b", "%o"} {
		shown := strings.TrimPrefix(fmt.Sprintf(form, []byte(canary)), "[]byte")
		if strings.Contains(s, strings.Trim(shown, `[]"{}`)) {
			return true
		}
	}
	return strings.Contains(s, canary)
}

// holders are all the ways in which a key may sit in what is printed.
func holders(k *Key) map[string]any {
	type unexportedPointer struct{ key *Key }
	type unexportedValue struct{ key Key }
	type exportedValue struct{ Key Key }
	type nested struct{ inner *unexportedValue }
	return map[string]any{
		"pointer":            k,
		"value":              *k,
		"exported value":     exportedValue{*k},
		"unexported pointer": unexportedPointer{k},
		"unexported value":   unexportedValue{*k},
		"pointer to struct":  &unexportedValue{*k},
		"nested":             nested{&unexportedValue{*k}},
		"slice":              []*Key{k},
		"slice of values":    []Key{*k},
		"map":                map[string]Key{"a": *k},
		"memory":             struct{ mem *memory }{k.mem},
		"error":              fmt.Errorf("cannot open with %v", k),
	}
}

func TestEveryVerbIsRedacted(t *testing.T) {
	k := key(t, canary)
	for name, holder := range holders(k) {
		for _, verb := range "vTtbcdoOqxXUeEfFgGspw!" {
			for _, flag := range []string{"", "+", "#", "-", " ", "0", "8.3"} {
				format := "%" + flag + string(verb)
				if out := fmt.Sprintf(format, holder); leaks(out) {
					t.Errorf("%s of %s shows the key: %.200s", format, name, out)
				}
			}
		}
		if out := fmt.Sprintln(holder); leaks(out) {
			t.Errorf("Sprintln of %s shows the key: %s", name, out)
		}
	}
	for _, format := range []string{"%v", "%s", "%d", "%x", "%#v", "%+v", "%q"} {
		if out := fmt.Sprintf(format, k); out != redacted {
			t.Errorf("%s of a key is %q", format, out)
		}
	}
	if k.String() != redacted || k.GoString() != redacted {
		t.Error("String or GoString is not redacted")
	}
}

func TestEncodersAreRedacted(t *testing.T) {
	k := key(t, canary)
	for name, holder := range holders(k) {
		if out, err := json.Marshal(holder); err != nil || leaks(string(out)) {
			t.Errorf("JSON of %s: %s, %v", name, out, err)
		}
		// XML and gob refuse some of the holders, which is as good.
		if out, _ := xml.Marshal(holder); leaks(string(out)) {
			t.Errorf("XML of %s: %s", name, out)
		}
		var out bytes.Buffer
		gob.NewEncoder(&out).Encode(holder)
		if leaks(out.String()) {
			t.Errorf("gob of %s: %q", name, out.String())
		}
	}
	if out, err := json.Marshal(k); err != nil || string(out) != `"[redacted]"` {
		t.Errorf("JSON of a key is %s, %v", out, err)
	}
	if out, err := xml.Marshal(k); err != nil || string(out) != "<Key>[redacted]</Key>" {
		t.Errorf("XML of a key is %s, %v", out, err)
	}
}

func TestLogsAreRedacted(t *testing.T) {
	k := key(t, canary)
	for name, holder := range holders(k) {
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("opened", "with", holder)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("opened", "with", holder)
		if leaks(out.String()) {
			t.Errorf("slog of %s: %s", name, out.String())
		}
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("opened", "with", k)
	if !strings.Contains(out.String(), `with=[redacted]`) {
		t.Errorf("slog of a key: %s", out.String())
	}
}

func TestLeaksFindsLeaks(t *testing.T) {
	type holder struct{ key []byte }
	for _, format := range []string{"%v", "%s", "%x", "%d", "%#v", "%q"} {
		if out := fmt.Sprintf(format, holder{[]byte(canary)}); !leaks(out) {
			t.Errorf("the test does not see the key in %s", out)
		}
	}
}
