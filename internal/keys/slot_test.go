package keys

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// header has keyslots 0 to 4; the key of 4 is not that of the volume.
func header() *luks2.Header {
	slots := map[int]luks2.Keyslot{}
	for number := range 5 {
		slots[number] = luks2.Keyslot{Type: "luks2", KDF: luks2.KDF{Type: "pbkdf2", Salt: []byte{byte(number)}, Iterations: 1000 + number}}
	}
	return &luks2.Header{Metadata: luks2.Metadata{
		Keyslots: slots,
		Segments: map[int]luks2.Segment{0: {Type: "crypt"}},
		Digests:  map[int]luks2.Digest{0: {Keyslots: []int{0, 1, 2, 3}, Segments: []int{0}}, 1: {Keyslots: []int{4}}},
		Tokens: map[int]luks2.Token{
			0: {ID: 0, Type: "vendor", Keyslots: []int{1}},
			1: {ID: 1, Type: "systemd-tpm2", Keyslots: []int{1}},
			2: {ID: 2, Type: "vendor", Keyslots: []int{2}},
			3: {ID: 3, Type: "systemd-recovery", Keyslots: []int{}}, // its keyslot is gone
		},
	}}
}

func describe(slots []*Slot) []string {
	var all []string
	for _, s := range slots {
		text := fmt.Sprintf("%d %s %d tokens", s.Number, s.Source, len(s.Tokens))
		if s.Ours {
			text += " ours"
		}
		if s.Missing {
			text += " missing"
		}
		if s.Unbound {
			text += " unbound"
		}
		all = append(all, text)
	}
	return all
}

func TestSlots(t *testing.T) {
	want := []string{"0 passphrase 0 tokens", "1 tpm2 2 tokens", "2 unknown 1 tokens", "3 passphrase 0 tokens", "4 passphrase 0 tokens unbound"}
	if diff := cmp.Diff(want, describe(Slots(header(), nil))); diff != "" {
		t.Error(diff)
	}
}

// The record tells what a keyslot is of which no token tells it, and which one is gone; a token knows better than the record. What has taken the place of
// another is not ours.
func TestRecordedSlots(t *testing.T) {
	made := []volume.Keyslot{{Slot: 0, Source: "recovery", Salt: volume.Hex{0}}, {Slot: 1, Source: "keyfile", Salt: volume.Hex{1}},
		{Slot: 2, Source: "keyfile", Salt: volume.Hex{2}}, {Slot: 3, Source: "keyfile", Salt: volume.Hex{1}}, {Slot: 9, Source: "tpm2", Salt: volume.Hex{9}}}
	slots := Slots(header(), made)
	want := []string{"0 recovery 0 tokens ours", "1 tpm2 2 tokens ours", "2 keyfile 1 tokens ours", "3 passphrase 0 tokens", "4 passphrase 0 tokens unbound",
		"9 tpm2 0 tokens ours missing"}
	if diff := cmp.Diff(want, describe(slots)); diff != "" {
		t.Error(diff)
	}
	if gone := slots[5]; !errors.Is(gone.Err(), unlock.ErrNoKeyslot) {
		t.Errorf("%+v", gone)
	}
}

func TestJudge(t *testing.T) {
	good, bad := Proof{Source: KeyFile, Token: -1}, Proof{Source: TPM2, Err: unlock.ErrWrongKey}
	tests := []struct {
		name     string
		slots    []*Slot
		unplaced []Unplaced
		want     Verdict
	}{
		{"nothing", nil, nil, NoneProven},
		{"untested", []*Slot{{}}, nil, NoneProven},
		{"all", []*Slot{{Proofs: []Proof{good}}, {}}, nil, AllProven},
		{"failed only", []*Slot{{Proofs: []Proof{bad}}}, nil, NoneProven},
		{"one of two keyslots", []*Slot{{Proofs: []Proof{bad}}, {Proofs: []Proof{good}}}, nil, SomeFailed},
		{"one of two tokens", []*Slot{{Proofs: []Proof{bad, good}}}, nil, SomeFailed},
		{"a key without keyslot", []*Slot{{Proofs: []Proof{good}}}, []Unplaced{{}}, SomeFailed},
		{"a keyslot of ours is gone", []*Slot{{Proofs: []Proof{good}}, {Missing: true}}, nil, SomeFailed},
	}
	for _, test := range tests {
		if got := Judge(test.slots, test.unplaced); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

// What opens a keyslot makes up for what does not.
func TestSlotErr(t *testing.T) {
	bad := Proof{Err: unlock.ErrWrongKey}
	if err := (&Slot{Proofs: []Proof{bad, {}}}).Err(); err != nil {
		t.Error(err)
	}
	if err := (&Slot{Proofs: []Proof{bad}}).Err(); !errors.Is(err, unlock.ErrWrongKey) {
		t.Error(err)
	}
}
