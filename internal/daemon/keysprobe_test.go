package daemon

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/keys"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

// keyBench is a recorded container in a plain file with a recovery passphrase in keyslot 0, and the probes that look at it.
type keyBench struct {
	t      *testing.T
	dir    string
	config *config.Config
	volume *volume.Volume
	board  *health.Board
	probe  *keysProbe
}

const benchPassphrase = "correct horse battery staple"

func newKeyBench(t *testing.T, sources ...config.KeySource) *keyBench {
	t.Helper()
	dir := t.TempDir()
	b := &keyBench{t: t, dir: dir, board: health.NewBoard(health.Options{})}
	b.config = &config.Config{Volume: config.Volume{Name: "media", Container: filepath.Join(dir, "media.luks")}, Unlock: sources,
		Probes: config.Probes{Keys: config.KeysProbe{Interval: 24 * time.Hour, ProvenWithin: 720 * time.Hour}}}
	b.volume = volume.New(b.config, volume.Paths{State: filepath.Join(dir, "state"), Runtime: dir}, command.Runner{})
	b.must(os.WriteFile(filepath.Join(dir, "passphrase"), []byte(benchPassphrase), 0o400))
	b.must(errors.Join(os.WriteFile(b.config.Volume.Container, nil, 0o600), os.Truncate(b.config.Volume.Container, 20<<20)))
	b.cryptsetup("luksFormat", "--type=luks2", "--key-file="+b.path("passphrase"), b.config.Volume.Container)
	record := &volume.Record{Container: b.config.Volume.Container, Pin: b.header().Pin(20 << 20), Filesystem: "ext4",
		Keyslots: []volume.Keyslot{{Slot: 0, Source: "recovery"}}, Encrypted: []volume.EncryptedStore{}}
	b.must(state.Store{Dir: filepath.Join(dir, "state")}.Save("volume-media", 1, record))
	_, err := b.volume.BackUpHeader(t.Context())
	b.must(err)
	b.restart()
	return b
}

// restart makes the probe forget what it keeps in memory.
func (b *keyBench) restart() {
	b.probe = &keysProbe{ring: b.volume, container: b.config.Volume.Container, settings: b.config.Probes.Keys, sources: b.config.Unlock,
		cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}}, collector: health.NewCollector(b.board, health.CollectorOptions{}), explain: byText}
}

// byText takes the last word of an error for its class.
func byText(err error) api.Explanation {
	words := strings.Fields(err.Error())
	return api.Explanation{Class: words[len(words)-1]}
}

func (b *keyBench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *keyBench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *keyBench) cryptsetup(args ...string) {
	b.t.Helper()
	_, err := command.Runner{}.Run(b.t.Context(), nil, nil, "cryptsetup",
		append([]string{"--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"}, args...)...)
	b.must(err)
}

func (b *keyBench) header() *luks2.Header {
	b.t.Helper()
	raw, err := health.OpenRaw(b.config.Volume.Container)
	b.must(err)
	defer raw.Close()
	header, err := luks2.Read(raw, raw.Bytes)
	b.must(err)
	return header
}

func (b *keyBench) recovery() []unlock.Source {
	b.t.Helper()
	key, err := secret.From([]byte(benchPassphrase))
	b.must(err)
	return []unlock.Source{unlock.Passphrase{Key: key}}
}

func (b *keyBench) add(wanted volume.Enrolment) int {
	b.t.Helper()
	added, err := b.volume.AddKey(b.t.Context(), wanted, volume.AddOptions{Sources: b.recovery()}, quiet{})
	b.must(err)
	return added.Keyslot
}

// quiet hears nothing of an operation.
type quiet struct{}

func (quiet) Step(volume.Step)                      {}
func (quiet) Progress(int64, int64)                 {}
func (quiet) Attempt(unlock.Attempt)                {}
func (quiet) Event(journal.Event, ...journal.Field) {}

func (b *keyBench) requireReason(want health.Reason, texts ...string) {
	b.t.Helper()
	proof, err := b.probe.Run(b.t.Context())
	if want == "" {
		if err != nil {
			b.t.Fatal(err)
		}
		err = errors.New(proof)
	} else if health.ReasonOf(err) != want {
		b.t.Fatalf("got %q, %v, want reason %s", proof, err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			b.t.Errorf("%q has no %q", err, text)
		}
	}
}

// age makes the proofs of a keyslot older.
func (b *keyBench) age(keyslot int, by time.Duration) {
	b.t.Helper()
	var file struct {
		Proofs []volume.KeyProof `json:"proofs"`
	}
	states := state.Store{Dir: b.path("state")}
	b.must(states.Load("proofs-media", 1, &file))
	for i := range file.Proofs {
		if file.Proofs[i].Keyslot == keyslot {
			file.Proofs[i].Time = file.Proofs[i].Time.Add(-by)
		}
	}
	b.must(states.Save("proofs-media", 1, file))
}

func (b *keyBench) provenAt(keyslot int) time.Time {
	b.t.Helper()
	proofs, err := b.volume.Proofs(b.header())
	b.must(err)
	i := slices.IndexFunc(proofs, func(p volume.KeyProof) bool { return p.Keyslot == keyslot })
	if i < 0 {
		return time.Time{}
	}
	return proofs[i].Time
}

// Two ways in that do not fail together, each seen to open the container of late; a key file is seen to by the probe itself, once a day.
func TestKeysProbe(t *testing.T) {
	b := newKeyBench(t)
	b.config.Unlock = []config.KeySource{{Keyfile: &config.Keyfile{Path: b.path("key")}}}
	b.restart()
	b.requireReason(health.ReasonKeyFailed, "keyfile: ", "1 way in, and nothing to fall back on: recovery never proven")
	slot := b.add(volume.EnrolKeyFile{Path: b.path("key")})
	b.requireReason(health.ReasonUnproven, "of 2 ways in 1 was seen", "recovery never proven", "keyfile proven ")
	b.must(b.volume.NoteProof(b.header(), 0, "passphrase"))
	b.requireReason("", "recovery proven ", "keyfile proven ")

	b.age(slot, 25*time.Hour)
	b.requireReason("") // the probe itself tried it less than a day ago
	old := b.provenAt(slot)
	b.restart()
	b.requireReason("")
	if now := b.provenAt(slot); now.Sub(old) < 24*time.Hour {
		t.Errorf("not tried again: %v", now)
	}
	b.age(0, 31*24*time.Hour)
	b.requireReason(health.ReasonUnproven, "in the last 30 days: recovery proven ")
	b.age(0, -100*24*time.Hour) // fault 71: proven in the future
	b.requireReason(health.ReasonUnproven)

	b.must(os.Remove(b.path("key"))) // fault 46
	b.requireReason(health.ReasonUnproven)
	b.age(slot, 25*time.Hour)
	b.restart()
	b.requireReason(health.ReasonKeyFailed, "keyfile: ", "key file missing")
}

// A clock that was ahead when a proof was written down does not keep the sources from being tried until it is there again.
func TestKeysProbeWithTheClockSetBack(t *testing.T) {
	b := newKeyBench(t, config.KeySource{Keyfile: &config.Keyfile{Path: filepath.Join(t.TempDir(), "key")}})
	key := b.config.Unlock[0].Keyfile.Path
	b.add(volume.EnrolKeyFile{Path: key})
	b.must(b.volume.NoteProof(b.header(), 0, "passphrase"))
	b.restart()
	b.requireReason("")
	b.must(os.Remove(key))
	b.requireReason("") // not due
	b.probe.tried[0] = time.Now().Add(time.Hour)
	b.requireReason(health.ReasonKeyFailed)
}

// A proof of one key file says nothing about another one.
func TestKeysProbeOfTwoKeyFiles(t *testing.T) {
	b := newKeyBench(t)
	b.add(volume.EnrolKeyFile{Path: b.path("key")})
	b.must(b.volume.NoteProof(b.header(), 0, "passphrase"))
	b.config.Unlock = []config.KeySource{{Keyfile: &config.Keyfile{Path: b.path("missing")}}, {Keyfile: &config.Keyfile{Path: b.path("key")}}}
	b.restart()
	b.requireReason(health.ReasonKeyFailed, "key file missing")
}

// A credential was decrypted by systemd when the daemon started: that it still could be is nothing that the probe sees.
func TestKeysProbeOfCredential(t *testing.T) {
	proven := time.Date(2026, 11, 26, 15, 0, 0, 0, time.UTC)
	have := describeWays([]wayIn{{source: "recovery", proven: proven}, {source: "credential", proven: proven}, {source: "command"}})
	if want := "recovery proven 2026-11-26, credential proven 2026-11-26 (as decrypted at the last start), command never proven"; have != want {
		t.Errorf("%q instead of %q", have, want)
	}
}

// Two keyslots of one kind fail together.
func TestKeysProbeWantsIndependentWays(t *testing.T) {
	b := newKeyBench(t)
	b.add(volume.EnrolRecovery{Deliver: func(*secret.Key) error { return nil }})
	b.requireReason(health.ReasonOneWayIn, "1 way in", "recovery proven ")
}

// A key that clevis has sealed in the TPM is no way in beside the TPM's own, and keeps its series.
func TestKeysProbeCountsClevisInTheTPMWithIt(t *testing.T) {
	header := &luks2.Header{Metadata: luks2.Metadata{
		Keyslots: map[int]luks2.Keyslot{0: {}, 1: {}, 2: {}, 3: {}},
		Segments: map[int]luks2.Segment{0: {Type: "crypt"}},
		Digests:  map[int]luks2.Digest{0: {Keyslots: []int{0, 1, 2, 3}, Segments: []int{0}}},
		Tokens: map[int]luks2.Token{
			0: {ID: 0, Type: tpm2.TokenType, Keyslots: []int{1}},
			1: {ID: 1, Type: unlock.TokenClevis, Keyslots: []int{2}, Raw: clevisToken("tpm2")},
			2: {ID: 2, Type: unlock.TokenClevis, Keyslots: []int{3}, Raw: clevisToken("tang")},
		},
	}}
	record, proven := &volume.Record{}, []volume.KeyProof{}
	describe := func(by func(*keys.Slot) keys.Source) string { return describeWays(waysIn(header, record, proven, by)) }
	if got := describe(failsWith); got != "passphrase never proven, tpm2 never proven, clevis never proven" {
		t.Error(got)
	}
	now := time.Now()
	proven = []volume.KeyProof{{Keyslot: 1, Source: "tpm2", Time: now}, {Keyslot: 2, Source: "clevis", Time: now}}
	delete(header.Metadata.Keyslots, 3)
	findings := judgeWays(waysIn(header, record, proven, failsWith), now, time.Hour)
	if len(findings) != 1 || findings[0].reason != health.ReasonUnproven {
		t.Errorf("the TPM and clevis in the TPM are well without the passphrase: %+v", findings)
	}
	if got := describe(ownSource); !strings.Contains(got, "clevis proven ") || !strings.Contains(got, "tpm2 proven ") {
		t.Error(got)
	}
}

func clevisToken(pin string) []byte {
	protected := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"dir","clevis":{"pin":"` + pin + `"}}`))
	return []byte(`{"type":"clevis","jwe":{"protected":"` + protected + `"}}`)
}

// The TPM is asked without anything that would cost an attempt on a PIN, and what it would refuse is known before a boot is.
func TestKeysProbeOfTPM(t *testing.T) {
	tpm := swtpm.Start(t)
	tpm.Extend(7, "boot")
	b := newKeyBench(t, config.KeySource{TPM2: &config.TPM2{Device: tpm.TCTI()}})
	slot := b.add(volume.EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}}})
	b.must(b.volume.NoteProof(b.header(), 0, "passphrase"))
	b.requireReason("", "recovery proven ", "tpm2 proven ")
	b.requireMetric(`luksmediad_tpm_policy_match{token="0"} 1`)
	b.age(slot, 25*time.Hour)
	old := b.provenAt(slot)
	b.restart()
	b.requireReason("")
	if !b.provenAt(slot).After(old) {
		t.Error("the TPM was not asked for the key")
	}
	b.requireMetric("luksmediad_tpm_unseal_ok 1")

	tpm.Extend(7, "another") // fault 41
	b.requireReason(health.ReasonDrift, "the TPM would give no key", "PCR 7 has moved")
	b.requireMetric(`luksmediad_tpm_policy_match{token="0"} 0`)
	tpm.Replace() // fault 43
	b.requireReason(health.ReasonDrift, "storage root key differs")
	tpm.Stop()
	b.age(slot, 25*time.Hour)
	b.restart()
	b.requireReason(health.ReasonKeyFailed, "no TPM")
	b.requireMetric("luksmediad_tpm_unseal_ok 0")
}

// Without a configured TPM it is not known whether it would give a key: nothing is said, as of one that would not.
func TestKeysProbeWithoutATPM(t *testing.T) {
	tpm := swtpm.Start(t)
	b := newKeyBench(t, config.KeySource{TPM2: &config.TPM2{Device: tpm.TCTI()}})
	b.add(volume.EnrolTPM2{Device: tpm.TCTI()})
	b.config.Unlock = nil
	b.restart()
	b.requireReason(health.ReasonUnproven)
	if metrics := b.metrics(); strings.Contains(metrics, "luksmediad_tpm_policy_match{") {
		t.Error(metrics)
	}
}

func (b *keyBench) metrics() string {
	answer := httptest.NewRecorder()
	health.MetricsHandler(health.NewRegistry(b.probe.collector)).ServeHTTP(answer, httptest.NewRequestWithContext(b.t.Context(), "GET", "/metrics", nil))
	return answer.Body.String()
}

// requireMetric wants a line in what a scrape would give.
func (b *keyBench) requireMetric(line string) {
	b.t.Helper()
	if !slices.Contains(strings.Split(b.metrics(), "\n"), line) {
		b.t.Errorf("no %s", line)
	}
}

// No PIN is tried, wherever it is kept: the TPM counts no failure.
func TestKeysProbeTriesNoPIN(t *testing.T) {
	tpm := swtpm.Start(t)
	pin, err := secret.From([]byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	b := newKeyBench(t)
	b.must(os.WriteFile(b.path("pin"), []byte("wrong"), 0o400))
	b.config.Unlock = []config.KeySource{{TPM2: &config.TPM2{Device: tpm.TCTI(), PIN: b.path("pin")}}, {TPM2: &config.TPM2{Device: tpm.TCTI()}}}
	b.restart()
	slot := b.add(volume.EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PIN: pin}})
	b.must(b.volume.NoteProof(b.header(), 0, "passphrase"))
	for range 5 {
		b.age(slot, 25*time.Hour)
		b.restart()
		b.requireReason("")
	}
	failures, limit := b.lockout(tpm)
	if failures != 0 || limit == 0 {
		t.Errorf("%d failures of %d", failures, limit)
	}
	tpm.Lockout() // fault 40
	if failures, limit = b.lockout(tpm); failures < limit/2 {
		t.Fatalf("%d failures of %d", failures, limit)
	}
	b.requireReason(health.ReasonLockoutNear, "failures of the")
}

// A key with a PIN, which no source has, does not hide that the TPM refuses the key without.
func TestKeysProbeOfPINBesideRefusedKey(t *testing.T) {
	tpm := swtpm.Start(t)
	tpm.Extend(7, "boot")
	pin, err := secret.From([]byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	b := newKeyBench(t, config.KeySource{TPM2: &config.TPM2{Device: tpm.TCTI(), PIN: config.NoPIN}})
	slot := b.add(volume.EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}}})
	b.add(volume.EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PIN: pin}})
	b.must(b.volume.NoteProof(b.header(), 0, "passphrase"))
	b.requireReason("")
	tpm.Extend(7, "another")
	b.requireReason(health.ReasonDrift, "the TPM would give no key", "PCR 7 has moved")
	b.age(slot, 25*time.Hour)
	b.age(slot+1, 25*time.Hour)
	b.restart()
	b.requireReason(health.ReasonDrift, "the TPM would give no key")
	b.requireMetric("luksmediad_tpm_unseal_ok 0")
}

func (b *keyBench) lockout(tpm *swtpm.TPM) (failures, limit uint32) {
	b.t.Helper()
	device, err := tpm2.Open(b.t.Context(), tpm.TCTI())
	b.must(err)
	defer device.Close()
	failures, limit, err = device.Lockout(b.t.Context())
	b.must(err)
	return failures, limit
}

// How full the volume was before a move is no part of a rate; the next daemon goes on with what was since.
func TestUsageNotes(t *testing.T) {
	b := newKeyBench(t)
	before := usageNotes{b.volume.Notes("usage"), nil}
	samples := []health.Usage{{Time: time.Unix(1, 0).UTC(), Bytes: 1}, {Time: time.Unix(2, 0).UTC(), Bytes: 2}}
	b.must(before.SaveUsage(samples))
	if got, err := (usageNotes{b.volume.Notes("usage"), nil}).LoadUsage(); err != nil || !slices.Equal(got, samples) {
		t.Errorf("%+v, %v", got, err)
	}
	after := usageNotes{b.volume.Notes("usage"), []string{"/volume/stores/media"}}
	if got, err := after.LoadUsage(); err != nil || len(got) > 0 {
		t.Errorf("after a move: %+v, %v", got, err)
	}
	b.must(after.SaveUsage(samples[1:]))
	if got, err := after.LoadUsage(); err != nil || !slices.Equal(got, samples[1:]) {
		t.Errorf("%+v, %v", got, err)
	}
	b.must(b.volume.Notes("usage").Save(samples)) // as it was once
	if got, err := after.LoadUsage(); err == nil || len(got) > 0 {
		t.Errorf("of another form: %+v", got)
	}
}

// The header probe sees the disk: what another process has just written to it, and gives each finding a reason of its own.
func TestHeaderProbe(t *testing.T) {
	b := newKeyBench(t)
	probe := &headerProbe{volume: b.volume, container: b.config.Volume.Container, explain: classOf}
	if proof, err := probe.Run(t.Context()); err != nil || !strings.HasPrefix(proof, "as recorded: 1 keyslots") {
		t.Fatalf("%q, %v", proof, err)
	}
	require := func(want health.Reason) {
		t.Helper()
		_, err := probe.Run(t.Context())
		if health.ReasonOf(err) != want || !slices.Contains(health.Reasons(health.Header), want) {
			t.Fatalf("got %v, want reason %s", err, want)
		}
	}
	b.must(os.WriteFile(b.path("more"), []byte("more"), 0o400))
	// While somebody works on the volume nothing is said about what may be half of a change.
	release, err := b.volume.Acquire(t.Context())
	b.must(err)
	b.cryptsetup("luksAddKey", "--key-file="+b.path("passphrase"), b.config.Volume.Container, b.path("more"))
	if _, err := probe.Run(t.Context()); err != nil {
		t.Errorf("during a change: %v", err)
	}
	first := &headerProbe{volume: b.volume, container: b.config.Volume.Container, explain: classOf}
	if _, err := first.Run(t.Context()); err == nil {
		t.Error("well without a look that was")
	}
	b.must(release())
	require(health.ReasonKeyslotUnknown)
	b.must(os.Rename(b.config.Volume.Container, b.path("gone"))) // fault 54
	require(health.ReasonUnreadable)
	b.must(os.Rename(b.path("gone"), b.config.Volume.Container))
	b.must(os.Truncate(b.config.Volume.Container, 19<<20))
	require(health.ReasonPinMismatch)
	b.must(os.Truncate(b.config.Volume.Container, 4096))
	require(health.ReasonHeaderDamaged)
	b.must(os.Truncate(b.config.Volume.Container, 0))
	require(health.ReasonNotLUKS2)
}

// What else has the container open is told also while somebody works on the volume.
func TestHeaderProbeOfASharedContainer(t *testing.T) {
	b := newKeyBench(t)
	shared := &sharedVolume{Volume: b.volume}
	probe := &headerProbe{volume: shared, container: b.config.Volume.Container, explain: classOf}
	if _, err := probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	shared.err = fmt.Errorf("it is open twice: %w", volume.ErrContainerShared)
	release, err := b.volume.Acquire(t.Context())
	b.must(err)
	defer func() { b.must(release()) }()
	_, err = probe.Run(t.Context())
	if reason := health.ReasonOf(err); reason != health.ReasonContainerShared || !slices.Contains(health.Reasons(health.Header), reason) {
		t.Errorf("got %v", err)
	}
	shared.err = nil
	if _, err := probe.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

type sharedVolume struct {
	*volume.Volume
	err error
}

func (v *sharedVolume) CheckShared() error { return v.err }

// classOf stands for the table of classes in the program.
func classOf(err error) api.Explanation {
	for class, word := range map[error]string{
		volume.ErrKeyslotUnknown: "keyslot_unknown", volume.ErrHeaderDamaged: "header_copy_damaged", luks2.ErrPinMismatch: "pin_mismatch",
		luks2.ErrDamaged: "header_damaged", luks2.ErrNotLUKS2: "not_luks2", volume.ErrContainerShared: "container_shared",
	} {
		if errors.Is(err, class) {
			return api.Explanation{Class: word}
		}
	}
	return api.Explanation{Class: "other"}
}
