package luks2

import (
	"slices"
	"testing"
)

func TestSlotsAndTokens(t *testing.T) {
	b := loadBase(t)
	h, err := Read(b.with(t,
		"tokens.0.keyslots", []any{"0", "5"},
		"tokens.4", map[string]any{"type": "systemd-tpm2", "keyslots": []any{"0", "1"}},
		"tokens.9", map[string]any{"type": "systemd-tpm2", "keyslots": []any{"5"}},
	), b.size)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.Slots(), []int{0, 1}; !slices.Equal(got, want) {
		t.Errorf("slots %v, want %v: slot 5 does not open the volume", got, want)
	}
	if got, want := h.SlotsByToken("systemd-tpm2"), []int{0, 1}; !slices.Equal(got, want) {
		t.Errorf("slots of systemd-tpm2 %v, want %v", got, want)
	}
	if got := h.SlotsByToken("clevis"); len(got) > 0 {
		t.Errorf("slots of clevis %v, want none", got)
	}
	var ids []int
	for _, token := range h.Tokens("systemd-tpm2") {
		ids = append(ids, token.ID)
	}
	if want := []int{1, 4}; !slices.Equal(ids, want) {
		t.Errorf("tokens %v, want %v: slot 5, of token 9, is not of the volume", ids, want)
	}
	if got := h.Metadata.Tokens[9].Keyslots; !slices.Equal(got, []int{5}) {
		t.Errorf("the metadata changed: token 9 has %v", got)
	}
	if got, want := string(h.Tokens("systemd-recovery")[0].Raw), `{"keyslots":["0","5"],"type":"systemd-recovery"}`; got != want {
		t.Errorf("raw token %s, want %s", got, want)
	}
}

func TestUntokenedSlotsCheapestFirst(t *testing.T) {
	path := container(t, "--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "4096", "--pbkdf-parallel", "1")
	addSlot(t, path, "--key-slot", "3", "--pbkdf-force-iterations", "5000")
	addSlot(t, path, "--key-slot", "4")
	addSlot(t, path, "--key-slot", "6")
	addSlot(t, path, "--key-slot", "8")
	addSlot(t, path, "--key-slot", "9", "--unbound", "--key-size", "256")
	importToken(t, path, `{"type":"acme","keyslots":["6"]}`)
	cryptsetup(t, "config", "--key-slot", "4", "--priority", "ignore", path)
	if got, want := mustOpen(t, path).UntokenedSlots(), []int{8, 3, 0, 6, 4}; !slices.Equal(got, want) {
		t.Errorf("slots %v, want %v", got, want)
	}
}

// Only a token with a key of its own claims a keyslot.
func TestUntokenedSlotsBesideTokens(t *testing.T) {
	path := container(t)
	addSlot(t, path, "--key-slot", "1")
	for kind, want := range map[string][]int{
		"systemd-tpm2": {0}, "systemd-fido2": {0}, "systemd-pkcs11": {0}, "systemd-recovery": {0}, "clevis": {0}, "acme": {0, 1},
	} {
		importToken(t, path, `{"type":"`+kind+`","keyslots":["1"]}`)
		if got := mustOpen(t, path).UntokenedSlots(); !slices.Equal(got, want) {
			t.Errorf("%s: slots %v, want %v", kind, got, want)
		}
		cryptsetup(t, "token", "remove", "--token-id", "0", path)
	}
	cryptsetup(t, "token", "add", "--key-description", "synapse", path) // to all active keyslots
	if got, want := mustOpen(t, path).UntokenedSlots(), []int{0, 1}; !slices.Equal(got, want) {
		t.Errorf("slots %v, want %v", got, want)
	}
}
