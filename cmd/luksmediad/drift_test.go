package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/golden"
)

// someDrifts are one of each kind that is told differently, as internal/keys finds them.
func someDrifts() []keys.Drift {
	value := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	recorded := &volume.Enrolled{Time: time.Date(2026, 5, 1, 12, 30, 0, 0, time.UTC)}
	drift := func(keyslot int) keys.Drift {
		return keys.Drift{Token: luks2.Token{ID: keyslot - 1, Keyslots: []int{keyslot}}, Result: keys.Differs, Bank: tpm2.SHA256, PCRs: []int{4, 7},
			Values: map[int][]byte{4: value(4), 7: value(7)}, Sealed: value(0xaa), Live: value(0xbb), Recorded: recorded}
	}
	moved := func(pcr int, unexplained bool, changes ...tpm2.Change) keys.Moved {
		return keys.Moved{PCR: pcr, Then: value(0xee), Now: value(byte(pcr)), Changes: changes, Unexplained: unexplained}
	}
	const variable = "EV_EFI_VARIABLE_DRIVER_CONFIG"
	all := make([]keys.Drift, 7)
	for i := range all {
		all[i] = drift(i + 1)
	}
	all[0].Moved = []keys.Moved{moved(4, false), moved(7, false,
		tpm2.Change{PCR: 7, Type: variable, Text: "dbx", Then: value(1), Now: value(2)},
		tpm2.Change{PCR: 7, Type: "EV_SEPARATOR", Then: value(3)},
		tpm2.Change{PCR: 7, Type: variable, Text: "\x1b[31mMokList", Now: value(5)})}
	all[1].Moved = []keys.Moved{moved(7, true)}
	all[2].Moved, all[2].LogErr = []keys.Moved{moved(7, false)}, fmt.Errorf("none was recorded: %w", tpm2.ErrEventLog)
	all[3].Recorded = nil
	all[4].Recorded, all[4].Stale = nil, true
	all[5].Err, all[5].Live = fmt.Errorf("TPM has no key at 0x81000001: %w", tpm2.ErrSRKMismatch), all[5].Sealed
	all[6].Result = keys.Match
	return all
}

func driftLinesOf(drifts []keys.Drift) []driftLine {
	var slots []*keys.Slot
	for _, d := range drifts {
		slots = append(slots, &keys.Slot{Number: d.Token.Keyslots[0], Source: keys.TPM2})
	}
	return (&subject{}).driftLines(append(slots, &keys.Slot{Number: 9, Source: keys.Recovery}), drifts)
}

// What has moved, and what is not known and why.
func TestPrintDrift(t *testing.T) {
	var text strings.Builder
	if err := printDriftTable(&text, driftLinesOf(someDrifts())); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/key-drift-moved.golden", text.String())
}

func TestDriftJSON(t *testing.T) {
	var text strings.Builder
	for _, line := range driftLinesOf(someDrifts()) {
		raw, err := json.Marshal(line)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s\n", raw)
	}
	golden.Compare(t, "testdata/key-drift.json", text.String())
}
