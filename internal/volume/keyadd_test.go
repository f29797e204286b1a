package volume

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"

	gotpm "github.com/google/go-tpm/tpm2"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
	"luksmediad/test/tang"
)

func TestAddKeyFile(t *testing.T) {
	r := newRing(t)
	w := &watcher{}
	added, err := r.AddKey(t.Context(), EnrolKeyFile{Path: r.path("key")}, AddOptions{Sources: offers(t, ringPassphrase)}, w)
	r.must(err)
	if added.Keyslot != 2 || added.Present || !slices.Equal(w.events, []journal.Event{journal.KeyslotAdded}) {
		t.Errorf("%+v, events %v", added, w.events)
	}
	info, err := os.Stat(r.path("key"))
	r.must(err)
	if info.Mode() != 0o400 || info.Size() != keyBytes {
		t.Errorf("the key file: %v, %d bytes", info.Mode(), info.Size())
	}
	r.requireKeyslots("0 recovery", "2 keyfile")
	r.requireInHeader(0, 1, 2)
	r.requireOpens(2, r.path("key"))

	// The same again is done already, and the key file alone authorises.
	before := r.sum()
	added, err = r.AddKey(t.Context(), EnrolKeyFile{Path: r.path("key")}, AddOptions{Sources: r.Sources()}, &watcher{})
	if err != nil || added.Keyslot != 2 || !added.Present {
		t.Errorf("%+v, %v", added, err)
	}
	if r.sum() != before {
		t.Error("something has changed")
	}

	// A file that is there is used as it is; a short one has a slow keyslot.
	short := r.write("short", "a short word\n")
	added, err = r.AddKey(t.Context(), EnrolKeyFile{Path: short}, AddOptions{Sources: r.Sources()}, &watcher{})
	r.must(err)
	r.requireOpens(added.Keyslot, short)
	if kdf := r.header().Metadata.Keyslots[added.Keyslot].KDF.Type; kdf != "argon2id" {
		t.Errorf("a short key file has %s", kdf)
	}
}

func TestAddRecovery(t *testing.T) {
	r := newRing(t)
	r.backUp()
	var printed string
	added := r.add(EnrolRecovery{Deliver: func(key *secret.Key) error { printed += string(key.Bytes()); return nil }})
	r.requireKeyslots("0 recovery", "2 recovery")
	r.requireOpens(2, r.write("recovery", printed))
	tokens := r.header().Tokens(unlock.TokenRecovery)
	if len(tokens) != 1 || !slices.Equal(tokens[0].Keyslots, []int{added.Keyslot}) || len(printed) != 71 {
		t.Errorf("tokens %v, recovery key of %d characters", tokens, len(printed))
	}

	// A key that nobody has taken is taken back.
	before := r.header()
	_, err := r.AddKey(t.Context(), EnrolRecovery{Deliver: func(*secret.Key) error { return ErrConfirmation }},
		AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	requireStep(t, err, StepKeys, ErrConfirmation)
	r.requireInHeader(0, 1, 2)
	if after := r.header(); len(after.Metadata.Tokens) != len(before.Metadata.Tokens) {
		t.Errorf("tokens %v", after.Metadata.Tokens)
	}
	r.requireKeyslots("0 recovery", "2 recovery")
	r.requireLook(nil)
}

func TestAddPassphrase(t *testing.T) {
	r := newRing(t)
	added := r.add(EnrolPassphrase{Key: newSecret(t, "another one")})
	r.requireKeyslots("0 recovery", "2 passphrase")
	r.requireOpens(added.Keyslot, r.write("another", "another one"))
	if kdf := r.header().Metadata.Keyslots[added.Keyslot].KDF.Type; kdf != "argon2id" {
		t.Errorf("a passphrase has %s", kdf)
	}
}

// A TPM key is sealed as asked, and systemd knows it.
func TestAddTPM2(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	tpm.Extend(7, "boot")
	r.add(EnrolTPM2{Device: tpm.TCTI()})
	r.add(EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}, Bank: tpm2.SHA384, PIN: newSecret(t, "1234")}})
	r.requireKeyslots("0 recovery", "2 tpm2", "3 tpm2")
	r.must(r.unseals(tpm, 2, nil))
	r.must(r.unseals(tpm, 3, newSecret(t, "1234")))
	if err := r.unseals(tpm, 3, nil); !errors.Is(err, tpm2.ErrPINNeeded) {
		t.Error(err)
	}
	tpm.Extend(7, "another")
	if err := r.unseals(tpm, 3, newSecret(t, "1234")); !errors.Is(err, tpm2.ErrPolicy) {
		t.Error(err)
	}
	// The TPM authorises.
	added, err := r.AddKey(t.Context(), EnrolKeyFile{Path: r.path("key")}, AddOptions{Sources: []unlock.Source{unlock.TPM2{Device: tpm.TCTI()}}}, &watcher{})
	r.must(err)
	r.requireOpens(added.Keyslot, r.path("key"))
	r.requireListed("0 password", "1 password", "2 tpm2", "3 tpm2", "4 password")
	r.enroll("--wipe-slot=tpm2")
	r.requireInHeader(0, 1, 4)
	if tokens := r.header().Metadata.Tokens; len(tokens) != 0 {
		t.Errorf("systemd-cryptenroll has left %v", tokens)
	}
}

// faults 41 and 43: what the TPM does not give any more is replaced, whyever.
func TestReplaceTPM2(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	tpm.Extend(7, "boot")
	bound := EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}}}
	r.add(bound)
	for _, change := range []struct {
		name   string
		do     func()
		reason error
	}{
		{"PCR", func() { tpm.Extend(7, "update") }, tpm2.ErrPolicy},
		{"TPM", func() { tpm.Replace(); tpm.Extend(7, "boot") }, tpm2.ErrSRKMismatch},
	} {
		change.do()
		old := r.madeTPM2()
		if err := r.unseals(tpm, old[0], nil); !errors.Is(err, change.reason) {
			t.Errorf("%s: %v", change.name, err)
		}
		added := r.add(bound, replacing)
		if !slices.Equal(added.Replaced, old) {
			t.Errorf("%s: %+v, was %v", change.name, added, old)
		}
		r.requireKeyslots("0 recovery", slotName(added))
		r.requireInHeader(sorted(0, 1, added.Keyslot)...)
		r.must(r.unseals(tpm, added.Keyslot, nil))
		if tokens := r.header().Metadata.Tokens; len(tokens) != 1 {
			t.Errorf("%s: tokens %v", change.name, tokens)
		}
	}
	// What the TPM still gives may authorise its own replacement.
	old := r.madeTPM2()
	added, err := r.AddKey(t.Context(), bound, AddOptions{Sources: []unlock.Source{unlock.TPM2{Device: tpm.TCTI()}}, Replace: Replacement{Superseded: true}}, &watcher{})
	if err != nil || !slices.Equal(added.Replaced, old) {
		t.Fatalf("%+v, %v", added, err)
	}
	r.must(r.unseals(tpm, added.Keyslot, nil))
}

func (r *ring) madeTPM2() []int {
	r.t.Helper()
	record, err := r.loadRecord()
	r.must(err)
	return (&keyChanging{Volume: r.Volume, record: record, header: r.header()}).madeFor(sourceTPM2)
}

func slotName(added *AddedKey) string { return strconv.Itoa(added.Keyslot) + " " + added.Source }

func sorted(numbers ...int) []int {
	slices.Sort(numbers)
	return numbers
}

// Of the keys of the machine only those go that the new one makes useless: not that of another configured TPM, nor one that the
// TPM still gives under another policy.
func TestReplaceSuperseded(t *testing.T) {
	r, tpm, other := newRing(t), swtpm.Start(t), swtpm.Start(t)
	for _, device := range []string{tpm.TCTI(), other.TCTI()} {
		r.config.Unlock = append(r.config.Unlock, config.KeySource{TPM2: &config.TPM2{Device: device}})
	}
	tpm.Extend(7, "boot")
	plain, bound := EnrolTPM2{Device: tpm.TCTI()}, EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}}}
	r.add(plain)                           // 2
	r.add(bound)                           // 3
	r.add(EnrolTPM2{Device: other.TCTI()}) // 4
	if added := r.add(plain, replacing); !slices.Equal(added.Replaced, []int{2}) {
		t.Errorf("%+v", added)
	}
	tpm.Extend(7, "update")
	if added := r.add(bound, replacing); !slices.Equal(added.Replaced, []int{3}) {
		t.Errorf("%+v", added)
	}
	other.Stop() // what does not say may still have the key
	tpm.Replace()
	tpm.Extend(7, "boot")
	if added := r.add(bound, replacing); len(added.Replaced) != 0 {
		t.Errorf("%+v", added)
	}
	named := func(options *AddOptions) { options.Replace.Keyslots = []int{4} }
	if added := r.add(plain, named); !slices.Equal(added.Replaced, []int{4}) {
		t.Errorf("%+v", added)
	}
	for _, keyslot := range []int{0, 1, 30} {
		_, err := r.AddKey(t.Context(), plain, AddOptions{Sources: offers(t, ringPassphrase), Replace: Replacement{Keyslots: []int{keyslot}}}, &watcher{})
		requireStep(t, err, StepKeys, ErrKeyslotForeign)
	}
}

// A new key that is bound to less replaces nothing, unless that is said.
func TestReplaceIsNotWeaker(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	tpm.Extend(7, "boot")
	r.add(EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}, PIN: newSecret(t, "1234")}})
	for name, options := range map[string]tpm2.SealOptions{
		"PIN":  {PCRs: []int{7}},
		"PCRs": {PIN: newSecret(t, "1234")},
	} {
		before := r.sum()
		wanted := EnrolTPM2{Device: tpm.TCTI(), SealOptions: options}
		_, err := r.AddKey(t.Context(), wanted, AddOptions{Sources: offers(t, ringPassphrase), Replace: Replacement{Keyslots: []int{2}}}, &watcher{})
		requireStep(t, err, StepKeys, ErrWeaker)
		if r.sum() != before {
			t.Errorf("%s: something has changed", name)
		}
	}
	tpm.Extend(7, "update") // so that the old one is of no use any more
	wanted := EnrolTPM2{Device: tpm.TCTI()}
	_, err := r.AddKey(t.Context(), wanted, AddOptions{Sources: offers(t, ringPassphrase), Replace: Replacement{Superseded: true}}, &watcher{})
	requireStep(t, err, StepKeys, ErrWeaker)
	added := r.add(wanted, replacing, func(options *AddOptions) { options.Replace.Weaker = true })
	if !slices.Equal(added.Replaced, []int{2}) {
		t.Errorf("%+v", added)
	}
}

// Keys that luksmediad did not make are never replaced.
func TestReplaceLeavesForeign(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	r.enroll("--tpm2-device="+tpm.TCTI(), "--tpm2-pcrs=")
	tpm.Restart() // systemd 252 leaves its sessions in a TPM that has no resource manager
	added := r.add(EnrolTPM2{Device: tpm.TCTI()}, replacing)
	if len(added.Replaced) != 0 || added.Keyslot != 3 {
		t.Errorf("%+v", added)
	}
	r.must(r.unseals(tpm, 2, nil))
	r.must(r.unseals(tpm, 3, nil))
}

// Nothing is promised that does not hold, and nothing is changed.
func TestAddDryRun(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	before := r.sum()
	dry := func(options *AddOptions) { options.DryRun = true }
	if added := r.add(EnrolTPM2{Device: tpm.TCTI()}, dry); added.Keyslot != 2 {
		t.Errorf("%+v", added)
	}
	r.add(EnrolKeyFile{Path: r.path("key")}, dry)
	r.add(EnrolRecovery{Deliver: func(*secret.Key) error { t.Error("a dry run prints a key"); return nil }}, dry)
	_, err := r.AddKey(t.Context(), EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}}},
		AddOptions{Sources: offers(t, ringPassphrase), DryRun: true}, &watcher{})
	requireStep(t, err, StepKeys, tpm2.ErrPCRUnused)
	if r.sum() != before {
		t.Error("something has changed")
	}
}

// addRefusal is what stands in the way of a key.
type addRefusal struct {
	spoil  func(*ring)
	wanted func(*ring) Enrolment
	step   Step
	class  error
}

// Every refusal leaves container, record and key file byte for byte as they were.
func TestAddRefuses(t *testing.T) {
	tpm := swtpm.Start(t)
	tpm.Extend(7, "boot")
	tpm.Deallocate(gotpm.TPMAlgSHA1) // which resets the PCRs
	tpm.Extend(4, "boot")
	keyFile := func(r *ring) Enrolment { return EnrolKeyFile{Path: r.path("key")} }
	seal := func(options tpm2.SealOptions) func(*ring) Enrolment {
		return func(*ring) Enrolment { return EnrolTPM2{Device: tpm.TCTI(), SealOptions: options} }
	}
	clevis := func(pin, config string) func(*ring) Enrolment {
		return func(*ring) Enrolment { return EnrolClevis{Pin: pin, Config: config, Trust: true} }
	}
	none := func(*ring) {}
	for name, refusal := range map[string]addRefusal{
		// what would bind the key to nothing
		"bank not allocated": {none, seal(tpm2.SealOptions{PCRs: []int{4}, Bank: tpm2.SHA1}), StepKeys, tpm2.ErrBankUnavailable},
		"PCR never extended": {none, seal(tpm2.SealOptions{PCRs: []int{4, 7}}), StepKeys, tpm2.ErrPCRUnused},
		"empty PIN":          {none, seal(tpm2.SealOptions{PIN: new(secret.Key)}), StepKeys, tpm2.ErrPINNeeded},
		"no TPM":             {none, func(r *ring) Enrolment { return EnrolTPM2{Device: "swtpm:path=" + r.path("none")} }, StepKeys, tpm2.ErrAbsent},
		// fault 47
		"key file readable":    {func(r *ring) { r.must(os.Chmod(r.write("key", "key"), 0o444)) }, keyFile, StepKeys, unlock.ErrKeyFileUnsafe},
		"no folder for it":     {none, func(r *ring) Enrolment { return EnrolKeyFile{Path: r.path("no/key")} }, StepKeys, os.ErrNotExist},
		"clevis config":        {none, clevis("tang", "http://localhost"), StepKeys, ErrClevis},
		"no such clevis pin":   {none, clevis("nosuch", "{}"), StepKeys, ErrClevis},
		"no such tang server":  {none, clevis("tang", `{"url":"http://127.0.0.1:1"}`), StepKeys, ErrClevis},
		"no key fits":          {func(r *ring) { r.forget(t, 0) }, keyFile, StepProve, unlock.ErrNoKeyFits},
		"another container":    {func(r *ring) { r.run("luksUUID", "--uuid=5b0ea6b2-3d35-4c2b-a0f1-b2a4c4b5d1e7", r.container()) }, keyFile, StepHeader, luks2.ErrPinMismatch},
		"container is missing": {func(r *ring) { r.must(os.Rename(r.container(), r.path("away"))) }, keyFile, StepContainer, ErrContainerMissing},
		// fault 50: cryptsetup would repair it in passing
		"primary damaged":   {func(r *ring) { r.overwrite(0, make([]byte, 512)) }, keyFile, StepHeader, ErrHeaderDamaged},
		"secondary damaged": {func(r *ring) { r.overwrite(headerCopyBytes, make([]byte, 512)) }, keyFile, StepHeader, ErrHeaderDamaged},
		"every keyslot used": {func(r *ring) {
			record, err := r.loadRecord()
			r.must(err)
			for keyslot := 2; keyslot < maxKeyslots; keyslot++ {
				record.Keyslots = append(record.Keyslots, Keyslot{Slot: keyslot, Source: sourceKeyFile})
			}
			r.must(r.saveRecord(record))
		}, keyFile, StepKeys, ErrKeyslotsFull},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.t = t
			refusal.spoil(r)
			before := r.sum()
			_, err := r.AddKey(t.Context(), refusal.wanted(r), AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
			requireStep(t, err, refusal.step, refusal.class)
			if r.sum() != before {
				t.Error("something has changed")
			}
		})
	}
}

// headerCopyBytes is the size of one copy of the header that cryptsetup writes by default.
const headerCopyBytes = 16 << 10

// A program that prints another key each time would not open anything: its keyslot is taken back.
func TestAddProvesByTheSource(t *testing.T) {
	r := newRing(t)
	wanted := enrolFound{"command", func(context.Context) (*secret.Key, error) { return secret.Random(keyBytes) }}
	_, err := r.AddKey(t.Context(), wanted, AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	requireStep(t, err, StepKeys, unlock.ErrWrongKey)
	r.requireInHeader(0, 1)
}

func (r *ring) overwrite(offset int64, content []byte) {
	r.t.Helper()
	file, err := os.OpenFile(r.container(), os.O_WRONLY, 0)
	r.must(err)
	_, err = file.WriteAt(content, offset)
	r.must(errors.Join(err, file.Close()))
}

// forget leaves nobody who knows the key of a keyslot.
func (r *ring) forget(t *testing.T, keyslot int) {
	t.Helper()
	r.run("luksChangeKey", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-slot="+strconv.Itoa(keyslot),
		"--key-file="+r.path("passphrase"), r.container(), r.write("unknown", "nobody knows"))
}

// What an operation that is cut short has begun is taken back at once.
func TestAddIsCancelled(t *testing.T) {
	r := newRing(t)
	r.backUp()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	deliver := func(*secret.Key) error { cancel(); return ctx.Err() }
	_, err := r.AddKey(ctx, EnrolRecovery{Deliver: deliver}, AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	requireStep(t, err, StepKeys, context.Canceled)
	r.requireInHeader(0, 1)
	if len(r.header().Metadata.Tokens) != 0 {
		t.Errorf("tokens %v", r.header().Metadata.Tokens)
	}
	r.requireKeyslots("0 recovery")
	r.requireLook(nil)
}

// A key bound to a real tang server: clevis itself lists it, gives its key, and unbinds it.
func TestAddClevis(t *testing.T) {
	r, server := newRing(t), tang.Start(t)
	added := r.add(EnrolClevis{Pin: "tang", Config: `{"url":"` + server.URL() + `"}`, Trust: true})
	sss := r.add(EnrolClevis{Pin: "sss", Config: `{"t":1,"pins":{"tang":[{"url":"` + server.URL() + `"}]}}`, Trust: true})
	r.requireKeyslots("0 recovery", "2 clevis", "3 clevis")
	keyslot := strconv.Itoa(added.Keyslot)
	listed := r.clevis("luks", "list", "-d", r.container())
	if want := "2: tang '{\"url\":\"" + server.URL() + "\"}'\n"; !containsLine(listed, want) {
		t.Errorf("clevis lists %q", listed)
	}
	r.requireOpens(added.Keyslot, r.write("clevis", r.clevis("luks", "pass", "-d", r.container(), "-s", keyslot)))
	r.requireOpens(sss.Keyslot, r.write("clevis", r.clevis("luks", "pass", "-d", r.container(), "-s", strconv.Itoa(sss.Keyslot))))

	// Field for field what clevis luks bind writes.
	r.clevis("luks", "bind", "-y", "-k", r.path("passphrase"), "-d", r.container(), "tang", `{"url":"`+server.URL()+`"}`)
	var tokens []map[string]json.RawMessage
	for _, token := range r.header().Tokens(unlock.TokenClevis) {
		var fields, jwe map[string]json.RawMessage
		r.must(json.Unmarshal(token.Raw, &fields))
		r.must(json.Unmarshal(fields["jwe"], &jwe))
		tokens = append(tokens, fields, jwe)
	}
	for i := range 2 {
		if ours, theirs := names(tokens[i]), names(tokens[4+i]); !slices.Equal(ours, theirs) {
			t.Errorf("fields %q, clevis writes %q", ours, theirs)
		}
	}

	r.clevis("luks", "unbind", "-f", "-d", r.container(), "-s", keyslot)
	r.requireInHeader(0, 1, 3, 4)

	server.Stop()
	_, err := r.AddKey(t.Context(), EnrolClevis{Pin: "tang", Config: `{"url":"` + server.URL() + `"}`, Trust: true},
		AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	requireStep(t, err, StepKeys, ErrClevis)
	r.requireInHeader(0, 1, 3, 4)
}

// A thumbprint that is not the server's is refused: it must not be taken for trust in whatever it advertises.
func TestClevisThumbprint(t *testing.T) {
	r, server := newRing(t), tang.Start(t)
	config := `{"url":"` + server.URL() + `","thp":"x3nS5HJhAIYrBoYsUdbj6bFNLRvSHUXmGJKsSXjgAk8"}`
	if needs, _ := NeedsTrust("tang", config); needs {
		t.Error("a thumbprint needs no trust")
	}
	_, err := r.AddKey(t.Context(), EnrolClevis{Pin: "tang", Config: config}, AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	requireStep(t, err, StepKeys, ErrClevis)
	r.requireInHeader(0, 1)
}

func TestNeedsTrust(t *testing.T) {
	for config, want := range map[string][2]bool{
		`{"url":"http://a"}`:                           {true, false},
		`{"url":"http://a","thp":"x"}`:                 {false, false},
		`{"url":"http://a","adv":{}}`:                  {false, false},
		`{"t":1,"pins":{"tpm2":{}}}`:                   {false, false},
		`{"pcr_ids":"7"}`:                              {false, false},
		`{"t":1,"pins":{"tang":[{"url":"http://a"}]}}`: {true, false},
		`{"t":2,"pins":{"tang":[{"url":"http://a"},{"url":"http://b","thp":"x"}]}}`: {true, true},
		`no JSON`: {false, false},
	} {
		if needs, mixed := NeedsTrust("tang", config); needs != want[0] || mixed != want[1] {
			t.Errorf("%s: %t, %t", config, needs, mixed)
		}
	}
}
