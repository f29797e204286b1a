package unlock

import (
	"reflect"
	"strings"
	"testing"
)

func requireOffers(t *testing.T, got []offered, want ...offered) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("offers %+v, want %+v", got, want)
	}
}

// A recovery key of systemd-cryptenroll(1), as it is printed and stored in the keyslot.
const recoveryKey = "cccccccc-bbbbbbbb-dddddddd-eeeeeeee-ffffffff-gggggggg-hhhhhhhh-iiiiiiii"

func TestPassphraseOffers(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, recoveryKey, 3)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["3"]}`)
	addKey(t, cryptsetup, device, "sealed", 4)
	importToken(t, cryptsetup, device, `{"type":"systemd-tpm2","keyslots":["4"]}`)
	header := readHeader(t, device)

	untokened := []int{formatSlot}
	for typed, want := range map[string][]offered{
		"correct horse":       {{"correct horse", untokened}},
		" blanks are a part ": {{" blanks are a part ", untokened}},
		"a newline too\n":     {{"a newline too\n", untokened}},
		recoveryKey:           {{recoveryKey, []int{3}}, {recoveryKey, untokened}},
		// A recovery key may be typed as systemd lets people type it; somebody may also have chosen it as a passphrase.
		strings.ToUpper(recoveryKey):             {{recoveryKey, []int{3}}, {strings.ToUpper(recoveryKey), untokened}},
		strings.ReplaceAll(recoveryKey, "-", ""): {{recoveryKey, []int{3}}, {strings.ReplaceAll(recoveryKey, "-", ""), untokened}},
		recoveryKey[:70]:                         {{recoveryKey[:70], untokened}},
	} {
		requireOffers(t, offersOf(t, Passphrase{Key: newKey(t, typed)}, header), want...)
	}
}

// Without a keyslot of no token only the recovery keyslot is left to try.
func TestPassphraseWithoutUntokenedKeyslot(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["31"]}`)
	offers := offersOf(t, Passphrase{Key: newKey(t, recoveryKey)}, readHeader(t, device))
	requireOffers(t, offers, offered{recoveryKey, []int{31}})
}

func TestPassphraseIsWiped(t *testing.T) {
	device := newContainer(t, Cryptsetup{Runner: &recorder{}})
	key := newKey(t, "correct horse")
	offersOf(t, Passphrase{Key: key}, readHeader(t, device))
	if key.Len() != 0 {
		t.Errorf("%d bytes of the passphrase are left", key.Len())
	}
}
