package keys

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/eventlog"
	"luksmediad/test/swtpm"
)

// boot is a machine that measures what it starts into a real TPM, and keeps a log of it.
type boot struct {
	t   *testing.T
	tpm *swtpm.TPM
	log *eventlog.Log
}

func newBoot(t *testing.T) *boot {
	t.Helper()
	return &boot{t, swtpm.Start(t), eventlog.New(crypto.SHA1, crypto.SHA256)}
}

// again reboots.
func (b *boot) again() {
	b.tpm.Restart()
	b.log = eventlog.New(crypto.SHA1, crypto.SHA256)
}

func (b *boot) measure(pcr int, kind uint32, data []byte) {
	b.tpm.Extend(pcr, string(data))
	b.log.Add(pcr, kind, data)
}

// start measures what Secure Boot and the boot loader of a real machine do.
func (b *boot) start(dbx, shim string) {
	b.measure(7, eventlog.VariableConfig, eventlog.Variable("SecureBoot", []byte{1}))
	b.measure(7, eventlog.VariableConfig, eventlog.Variable("dbx", []byte(dbx)))
	b.measure(4, eventlog.Application, append(eventlog.Image(`\EFI\debian\shimx64.efi`), shim...))
	b.measure(7, eventlog.Separator, make([]byte, 4))
}

func (b *boot) device() *tpm2.Device {
	b.t.Helper()
	device, err := tpm2.Open(b.t.Context(), b.tpm.TCTI())
	if err != nil {
		b.t.Fatal(err)
	}
	return device
}

// enrol seals a key, and gives a header that has its token, and what was recorded.
func (b *boot) enrol(pcrs ...int) (*luks2.Header, volume.Enrolled) {
	b.t.Helper()
	device := b.device()
	defer device.Close()
	key, err := secret.Random(32)
	if err != nil {
		b.t.Fatal(err)
	}
	defer key.Wipe()
	token, err := device.Seal(b.t.Context(), key, tpm2.SealOptions{PCRs: pcrs})
	if err != nil {
		b.t.Fatal(err)
	}
	return withToken(b.t, token), b.recorded(device, token)
}

func withToken(t *testing.T, token *tpm2.Token) *luks2.Header {
	t.Helper()
	token.Keyslots = []int{1}
	raw, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	h := header()
	h.Metadata.Tokens = map[int]luks2.Token{0: {ID: 0, Type: tpm2.TokenType, Keyslots: []int{1}, Raw: raw}}
	return h
}

// recorded is what volume writes down, see TestRememberEventLog there.
func (b *boot) recorded(device *tpm2.Device, token *tpm2.Token) volume.Enrolled {
	b.t.Helper()
	values, err := device.ReadPCRs(b.t.Context(), tpm2.SHA256, []int{4, 7, 10, 11})
	if err != nil {
		b.t.Fatal(err)
	}
	log := b.events()
	e := volume.Enrolled{Keyslot: 1, PolicyHash: token.PolicyHash, Bank: tpm2.SHA256, PCRs: token.PCRs, Values: map[int]volume.Hex{},
		Time: time.Now(), EventLog: log.Digest, Events: log.Events}
	for pcr, value := range values {
		if e.Values[pcr] = value; !log.Explains(pcr, value) {
			e.Unexplained = append(e.Unexplained, pcr)
		}
	}
	return e
}

func (b *boot) events() *tpm2.EventLog {
	b.t.Helper()
	log, err := tpm2.ReadEventLog(bytes.NewReader(b.log.Bytes()), tpm2.SHA256)
	if err != nil {
		b.t.Fatal(err)
	}
	return log
}

// drift compares the only token of a header.
func (b *boot) drift(header *luks2.Header, enrolments ...volume.Enrolled) Drift {
	b.t.Helper()
	live := Live{TPMs: []unlock.TPM2{{Device: b.tpm.TCTI()}}, Enrolments: enrolments, EventLog: b.log.Bytes()}
	drifts, err := live.Drifts(b.t.Context(), header)
	if err != nil || len(drifts) != 1 {
		b.t.Fatalf("%+v, %v", drifts, err)
	}
	return drifts[0]
}

// fault 41: the PCRs that moved are named, from which value to which, and what was measured differently; no other PCR
// and no other event is.
func TestDriftNamesWhatMoved(t *testing.T) {
	b := newBoot(t)
	b.start("old", "15.7")
	header, recorded := b.enrol(4, 7)
	if d := b.drift(header, recorded); d.Result != Match || d.Moved != nil || d.LogErr != nil || d.Recorded == nil {
		t.Errorf("nothing has moved: %+v", d)
	}
	b.again()
	b.start("new", "15.7")
	d := b.drift(header, recorded)
	if d.Result != Differs || d.LogErr != nil || len(d.Moved) != 1 {
		t.Fatalf("%+v", d)
	}
	moved := d.Moved[0]
	if moved.PCR != 7 || moved.Unexplained || !bytes.Equal(moved.Then, recorded.Values[7]) || !bytes.Equal(moved.Now, d.Values[7]) || bytes.Equal(moved.Now, moved.Then) {
		t.Errorf("%+v", moved)
	}
	then, now := digests(recorded.Events, "dbx"), digests(b.events().Events, "dbx")
	want := []tpm2.Change{{PCR: 7, Type: "EV_EFI_VARIABLE_DRIVER_CONFIG", Text: "dbx", Then: then[0], Now: now[0]}}
	if diff := cmp.Diff(want, moved.Changes); diff != "" {
		t.Error(diff)
	}
}

func digests(events []tpm2.Event, text string) [][]byte {
	var found [][]byte
	for _, event := range events {
		if event.Text == text {
			found = append(found, event.Digest)
		}
	}
	return found
}

// What was measured then and is not now, and the other way round.
func TestDriftNamesEventsOfOneBoot(t *testing.T) {
	b := newBoot(t)
	b.start("dbx", "15.7")
	header, recorded := b.enrol(7)
	b.again()
	b.measure(7, eventlog.VariableConfig, eventlog.Variable("SecureBoot", []byte{0}))
	b.measure(7, eventlog.Separator, make([]byte, 4))
	b.measure(7, eventlog.IPL, []byte("MokListTrusted"))
	changes := b.drift(header, recorded).Moved[0].Changes
	got := map[string]string{}
	for _, change := range changes {
		got[change.Text] = map[bool]string{true: "changed", false: "one boot"}[change.Then != nil && change.Now != nil]
	}
	if diff := cmp.Diff(map[string]string{"SecureBoot": "changed", "dbx": "one boot", "MokListTrusted": "one boot"}, got); diff != "" {
		t.Error(diff)
	}
}

// A PCR that others extend, which firmware's log does not tell.
func TestDriftOfUnexplainedPCR(t *testing.T) {
	b := newBoot(t)
	b.start("dbx", "15.7")
	header, recorded := b.enrol(4)
	b.tpm.Extend(4, "by the kernel")
	if moved := b.drift(header, recorded).Moved; len(moved) != 1 || !moved[0].Unexplained || moved[0].Changes != nil {
		t.Errorf("now: %+v", moved)
	}
	b.again()
	b.start("dbx", "15.7")
	b.tpm.Extend(4, "by the kernel")
	header, recorded = b.enrol(4)
	b.again()
	b.start("dbx", "15.7")
	if moved := b.drift(header, recorded).Moved; len(moved) != 1 || !moved[0].Unexplained {
		t.Errorf("then: %+v", moved)
	}
}

// Without event logs the PCRs are named nevertheless.
func TestDriftWithoutEventLog(t *testing.T) {
	b := newBoot(t)
	b.start("old", "15.7")
	header, recorded := b.enrol(7)
	b.tpm.Extend(7, "something new")
	unlogged := recorded
	unlogged.EventLog, unlogged.Events = nil, nil
	if d := b.drift(header, unlogged); len(d.Moved) != 1 || d.Moved[0].Changes != nil || !errors.Is(d.LogErr, tpm2.ErrEventLog) {
		t.Errorf("none then: %+v", d)
	}
	live := Live{TPMs: []unlock.TPM2{{Device: b.tpm.TCTI()}}, Enrolments: []volume.Enrolled{recorded}} // a socket has none
	drifts, err := live.Drifts(t.Context(), header)
	if err != nil || len(drifts[0].Moved) != 1 || !errors.Is(drifts[0].LogErr, tpm2.ErrEventLog) {
		t.Errorf("none now: %+v, %v", drifts, err)
	}
	whole := b.log.Bytes()
	live.EventLog = whole[:len(whole)-3]
	if drifts, err = live.Drifts(t.Context(), header); err != nil || !errors.Is(drifts[0].LogErr, tpm2.ErrEventLog) {
		t.Errorf("a truncated one: %+v, %v", drifts, err)
	}
}

// A record of another key is not used: its values would name the wrong PCRs.
func TestDriftIgnoresStaleRecord(t *testing.T) {
	b := newBoot(t)
	b.start("old", "15.7")
	_, stale := b.enrol(7)
	b.tpm.Extend(7, "then another key was enrolled")
	header, fresh := b.enrol(7)
	b.tpm.Extend(7, "something new")
	if d := b.drift(header, stale); d.Result != Differs || !d.Stale || d.Recorded != nil || d.Moved != nil {
		t.Errorf("stale: %+v", d)
	}
	other := fresh
	other.Keyslot = 5
	if d := b.drift(header, other); d.Stale || d.Recorded != nil || d.Moved != nil {
		t.Errorf("of another keyslot: %+v", d)
	}
	if d := b.drift(header, stale, fresh); d.Stale || len(d.Moved) != 1 || !bytes.Equal(d.Moved[0].Then, fresh.Values[7]) {
		t.Errorf("both: %+v", d)
	}
}

// fault 43: a token for another TPM is told as such without unsealing, whatever its policy says.
func TestDriftOfReplacedTPM(t *testing.T) {
	b := newBoot(t)
	header, recorded := b.enrol()
	if d := b.drift(header, recorded); d.Result != Match {
		t.Errorf("%+v", d)
	}
	b.tpm.Replace()
	if d := b.drift(header, recorded); d.Result != Differs || !errors.Is(d.Err, tpm2.ErrSRKMismatch) {
		t.Errorf("no key at its handle: %+v", d)
	}
	b.enrol()
	if d := b.drift(header, recorded); d.Result != Differs || !errors.Is(d.Err, tpm2.ErrSRKMismatch) || !bytes.Equal(d.Live, d.Sealed) {
		t.Errorf("another key there: %+v", d)
	}
	if d := b.drift(legacy(t, header)); d.Result != Match {
		t.Errorf("a token of systemd 253 names no key: %+v", d)
	}
}

// legacy takes the storage root key out of a token, as in those of systemd up to 253.
func legacy(t *testing.T, header *luks2.Header) *luks2.Header {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(header.Metadata.Tokens[0].Raw, &fields); err != nil {
		t.Fatal(err)
	}
	delete(fields, "tpm2_srk")
	raw, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	token := header.Metadata.Tokens[0]
	token.Raw = raw
	header.Metadata.Tokens[0] = token
	return header
}
