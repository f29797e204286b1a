package volume

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	gotpm "github.com/google/go-tpm/tpm2"

	"luksmediad/internal/state"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/eventlog"
	"luksmediad/test/swtpm"
)

func openTPM(t *testing.T, s *swtpm.TPM) *tpm2.Device {
	t.Helper()
	device, err := tpm2.Open(t.Context(), s.TCTI())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { device.Close() })
	return device
}

func sealKey(t *testing.T, device *tpm2.Device, pcrs ...int) *tpm2.Token {
	t.Helper()
	key, err := secret.Random(keyBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	token, err := device.Seal(t.Context(), key, tpm2.SealOptions{PCRs: pcrs})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func requireRecorded(t *testing.T, v *Volume, keyslot int) Enrolled {
	t.Helper()
	all, err := v.Enrolments()
	if err != nil {
		t.Fatal(err)
	}
	var found []Enrolled
	for _, e := range all {
		if e.Keyslot == keyslot {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		t.Fatalf("keyslot %d has %d records", keyslot, len(found))
	}
	return found[0]
}

// All PCRs are recorded, not only those that the policy binds; a keyslot has one record, that of its last key.
func TestRecordEnrolment(t *testing.T) {
	s, v := swtpm.Start(t), testVolume(t, "/srv/volume.luks")
	if all, err := v.Enrolments(); err != nil || all != nil {
		t.Errorf("before the first: %v, %v", all, err)
	}
	s.Extend(7, "boot")
	device := openTPM(t, s)
	bound, free := sealKey(t, device, 7), sealKey(t, device)
	for keyslot, token := range map[int]*tpm2.Token{1: bound, 2: free} {
		if err := v.recordEnrolment(t.Context(), device, keyslot, token); err != nil {
			t.Fatal(err)
		}
	}
	e := requireRecorded(t, v, 1)
	if len(e.Values) != 24 || len(e.Values[7]) != 32 || !slices.Equal(e.PCRs, []int{7}) || e.Bank != tpm2.SHA256 || e.Time.IsZero() || e.EventLog != nil {
		t.Errorf("%+v", e)
	}
	if digest, err := (tpm2.Policy{Bank: e.Bank, PCRs: e.PCRs}).Digest(map[int][]byte{7: e.Values[7]}); err != nil || !bytes.Equal(digest, e.PolicyHash) {
		t.Errorf("the values give policy %x instead of %x, %v", digest, e.PolicyHash, err)
	}
	if !e.Of(1, bound) || e.Of(1, free) || e.Of(2, bound) {
		t.Error("a record is of its own token for its own keyslot")
	}
	if e := requireRecorded(t, v, 2); len(e.Values) != 24 || len(e.PCRs) != 0 || !e.Of(2, free) {
		t.Errorf("%+v", e)
	}
	if err := v.recordEnrolment(t.Context(), device, 1, free); err != nil {
		t.Fatal(err)
	}
	if e := requireRecorded(t, v, 1); !e.Of(1, free) {
		t.Errorf("%+v", e)
	}
}

// Values that are not those the key is sealed to would name the wrong PCR later.
func TestRecordNothingAfterPCRMoved(t *testing.T) {
	s, v := swtpm.Start(t), testVolume(t, "/srv/volume.luks")
	s.Extend(7, "boot")
	device := openTPM(t, s)
	token := sealKey(t, device, 7)
	device.Close()
	s.Extend(7, "something else") // fault 41
	if err := v.recordEnrolment(t.Context(), openTPM(t, s), 1, token); !errors.Is(err, tpm2.ErrPolicy) {
		t.Error(err)
	}
	if all, err := v.Enrolments(); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// A TPM without the bank, and with it a key that needs no PCR.
func TestRecordWithoutBank(t *testing.T) {
	s, v := swtpm.Start(t), testVolume(t, "/srv/volume.luks")
	s.Deallocate(gotpm.TPMAlgSHA256)
	device := openTPM(t, s)
	if err := v.recordEnrolment(t.Context(), device, 1, sealKey(t, device)); err != nil {
		t.Fatal(err)
	}
	if e := requireRecorded(t, v, 1); len(e.Values) != 0 {
		t.Errorf("%+v", e)
	}
}

// What the event log says is kept, and which PCRs it does not account for.
func TestRememberEventLog(t *testing.T) {
	s, v := swtpm.Start(t), testVolume(t, "/srv/volume.luks")
	log := eventlog.New(crypto.SHA256)
	dbx := eventlog.Variable("dbx", []byte("old"))
	log.Add(7, eventlog.VariableConfig, dbx)
	s.Extend(7, string(dbx))
	s.Extend(10, "IMA")
	device := openTPM(t, s)
	e, err := observe(t.Context(), device, 1, sealKey(t, device, 7))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := tpm2.ReadEventLog(bytes.NewReader(log.Bytes()), e.Bank)
	if err != nil {
		t.Fatal(err)
	}
	e.remember(parsed)
	if err := v.saveEnrolment(*e); err != nil {
		t.Fatal(err)
	}
	again := requireRecorded(t, v, 1)
	if len(again.EventLog) != 32 || len(again.Events) != 1 || again.Events[0].Text != "dbx" || !slices.Equal(again.Unexplained, []int{10}) {
		t.Errorf("%+v", again)
	}
}

// A log of a boot loader that measures each of its commands does not fill the folder.
func TestRememberLargeEventLog(t *testing.T) {
	log := eventlog.New(crypto.SHA256)
	for i := range maxEvents {
		log.Add(8, eventlog.IPL, fmt.Append(nil, "grub_cmd: ", i))
	}
	log.Add(7, eventlog.Separator, make([]byte, 4))
	parsed, err := tpm2.ReadEventLog(bytes.NewReader(log.Bytes()), tpm2.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for pcrs, want := range map[[1]int]int{{7}: 1, {8}: maxEvents} {
		e := Enrolled{PCRs: pcrs[:]}
		if e.remember(parsed); len(e.Events) != want {
			t.Errorf("PCR %v: %d events, want %d", pcrs, len(e.Events), want)
		}
	}
	log.Add(8, eventlog.IPL, []byte("one more"))
	if parsed, err = tpm2.ReadEventLog(bytes.NewReader(log.Bytes()), tpm2.SHA256); err != nil {
		t.Fatal(err)
	}
	e := Enrolled{PCRs: []int{8}}
	if e.remember(parsed); e.Events != nil || e.EventLog == nil {
		t.Errorf("%d events of PCR 8", len(e.Events))
	}
}

// What only explains is written anew when it is damaged, and keeps nobody from a new key.
func TestDamagedEnrolments(t *testing.T) {
	s, v := swtpm.Start(t), testVolume(t, "/srv/volume.luks")
	if err := v.saveEnrolment(Enrolled{Keyslot: 1}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.paths.State, v.enrolmentName()+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := v.Enrolments(); len(known) != 0 || err != nil {
		t.Errorf("%+v, %v", known, err)
	}
	device := openTPM(t, s)
	if err := v.recordEnrolment(t.Context(), device, 1, sealKey(t, device)); err != nil {
		t.Error(err)
	}
	if known, err := v.Enrolments(); len(known) != 1 || err != nil {
		t.Errorf("%+v, %v", known, err)
	}
}

// fault 76: what a newer luksmediad has written is neither read nor overwritten.
func TestNewerEnrolments(t *testing.T) {
	s, v := swtpm.Start(t), testVolume(t, "/srv/volume.luks")
	if err := v.states.Save(v.enrolmentName(), enrolmentVersion+1, enrolments{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(v.paths.State, v.enrolmentName()+".json")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	device := openTPM(t, s)
	if err := v.recordEnrolment(t.Context(), device, 1, sealKey(t, device)); !errors.Is(err, state.ErrNewer) {
		t.Error(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("%s, %v", after, err)
	}
}
