package tpm2

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-eventlog/testdata"

	"luksmediad/test/eventlog"
	"luksmediad/test/swtpm"
)

// realLogs are those of real machines.
func realLogs() map[string][]byte {
	return map[string][]byte{
		"arch":       testdata.ArchLinuxWorkstationEventLog, // SHA-1 only, the older form
		"debian":     testdata.Debian10EventLog,             // the same
		"rhel":       testdata.Rhel8EventLog,
		"ubuntu":     testdata.Ubuntu2104NoSecureBootEventLog,
		"ubuntu-sev": testdata.Ubuntu2404AmdSevSnpEventLog,
		"cos-tdx":    testdata.Cos125IntelTdxSecureBootA4HighGpu8GEventLog,
		"host":       testdata.HostGMESEventLog,
	}
}

// wrote is a boot with one event of each kind that is described.
func wrote(hashes ...crypto.Hash) *eventlog.Log {
	log := eventlog.New(hashes...)
	log.Add(0, eventlog.NoAction, []byte("not extended into anything"))
	log.Add(0, eventlog.FirmwareBlob2, append([]byte("\x05POST1"), make([]byte, 16)...))
	log.Add(7, eventlog.VariableConfig, eventlog.Variable("SecureBoot", []byte{1}))
	log.Add(7, eventlog.VariableConfig, eventlog.Variable("dbx", []byte("revoked")))
	log.Add(7, eventlog.Separator, make([]byte, 4))
	log.Add(4, eventlog.Action, []byte("Calling EFI Application from Boot Option"))
	log.Add(4, eventlog.Application, eventlog.Image(`\EFI\debian\shimx64.efi`))
	log.Add(8, eventlog.IPL, []byte("grub_cmd: set root=hd0,gpt2\x00"))
	log.Add(9, eventlog.EventTag, append([]byte{0xec, 0x22, 0x3b, 0x8f, 26, 0, 0, 0}, eventlog.Wide("Linux initrd")...))
	log.Add(12, eventlog.IPL, eventlog.Wide("ro quiet "+strings.Repeat("x", 2*maxText)))
	return log
}

func read(t *testing.T, raw []byte, bank Bank) *EventLog {
	t.Helper()
	log, err := ReadEventLog(bytes.NewReader(raw), bank)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func TestReadEventLog(t *testing.T) {
	log := read(t, wrote(crypto.SHA1, crypto.SHA256, crypto.SHA384).Bytes(), SHA384)
	var got []string
	for _, event := range log.Events {
		if len(event.Digest) != crypto.SHA384.Size() {
			t.Errorf("digest of %d bytes", len(event.Digest))
		}
		got = append(got, fmt.Sprintf("%d %s %s", event.PCR, event.Type, event.Text))
	}
	want := []string{
		"0 EV_EFI_PLATFORM_FIRMWARE_BLOB2 POST1",
		"7 EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot",
		"7 EV_EFI_VARIABLE_DRIVER_CONFIG dbx",
		"7 EV_SEPARATOR ",
		"4 EV_EFI_ACTION Calling EFI Application from Boot Option",
		`4 EV_EFI_BOOT_SERVICES_APPLICATION \EFI\debian\shimx64.efi`,
		"8 EV_IPL grub_cmd: set root=hd0,gpt2",
		"9 EV_EVENT_TAG Linux initrd",
		"12 EV_IPL ro quiet " + strings.Repeat("x", maxText-10) + "…",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// longest has the longest description that the byte before it allows.
func longest() *eventlog.Log {
	log := eventlog.New(crypto.SHA256)
	log.Add(0, eventlog.FirmwareBlob2, append([]byte{255}, bytes.Repeat([]byte("x"), 255+16)...))
	return log
}

func TestReadLongestDescription(t *testing.T) {
	if got, want := read(t, longest().Bytes(), SHA256).Events[0].Text, strings.Repeat("x", maxText-1)+"…"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

// Logs of real machines are read, and say things that can be printed.
func TestReadRealEventLogs(t *testing.T) {
	for name, raw := range realLogs() {
		bank := SHA256
		if name == "arch" || name == "debian" {
			bank = SHA1
		}
		described := 0
		for _, event := range read(t, raw, bank).Events {
			if event.Text != "" {
				described++
			}
		}
		if described < 2 {
			t.Errorf("%s: %d events are described", name, described)
		}
	}
	log := read(t, testdata.Ubuntu2104NoSecureBootEventLog, SHA256)
	if !bytes.Contains(fmt.Append(nil, log.Events), []byte("EV_EFI_VARIABLE_DRIVER_CONFIG")) {
		t.Errorf("%v", log.Events)
	}
}

// A log that is cut off anywhere is read up to a whole event or refused, by its class.
func TestReadTruncatedEventLog(t *testing.T) {
	raw := wrote(crypto.SHA256).Bytes()
	whole := len(read(t, raw, SHA256).Events)
	for size := range raw {
		log, err := ReadEventLog(bytes.NewReader(raw[:size]), SHA256)
		if err != nil {
			wantClass(t, err, ErrEventLog)
		} else if len(log.Events) >= whole {
			t.Errorf("%d of %d bytes have all %d events", size, len(raw), whole)
		}
	}
}

func TestReadBadEventLog(t *testing.T) {
	sha1Only := wrote(crypto.SHA1).Bytes()
	tests := map[string]struct {
		raw  []byte
		bank Bank
	}{
		"empty":            {nil, SHA256},
		"no log":           {[]byte(strings.Repeat("text", 100)), SHA256},
		"not in this bank": {sha1Only, SHA256},
		"no such bank":     {sha1Only, "md5"},
		"not understood":   {wrote(crypto.SHA256, crypto.SHA512).Bytes(), SHA512},
		"too large":        {append(wrote(crypto.SHA256).Bytes(), bytes.Repeat([]byte{0xff}, MaxEventLogBytes)...), SHA256},
	}
	for name, test := range tests {
		if _, err := ReadEventLog(bytes.NewReader(test.raw), test.bank); !errors.Is(err, ErrEventLog) {
			t.Errorf("%s: %v", name, err)
		}
	}
	read(t, append(wrote(crypto.SHA256).Bytes(), bytes.Repeat([]byte{0xff}, 4096)...), SHA256) // a padded buffer is none of them
}

// The log is that of the TPM in use, also where the only TPM is the second one.
func TestEventLogOfDevice(t *testing.T) {
	root := t.TempDir()
	folder := filepath.Join(root, "tpm1")
	if err := errors.Join(os.Mkdir(folder, 0o755), os.WriteFile(filepath.Join(folder, "binary_bios_measurements"), wrote(crypto.SHA256).Bytes(), 0o444)); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"/dev/tpmrm1", "/dev/tpm1"} {
		if log, err := readEventLog(root, node, SHA256); err != nil || len(log.Events) == 0 {
			t.Errorf("%s: %v", node, err)
		}
	}
	for _, node := range []string{"/dev/tpmrm0", "/dev/tpmrm", "/dev/tpmrm1x", "/run/tpm.sock", "localhost:2321"} {
		_, err := readEventLog(root, node, SHA256)
		wantClass(t, err, ErrEventLog)
	}
	s := swtpm.Start(t)
	_, err := with(t, s, func(d *Device) (*EventLog, error) { return d.EventLog(SHA256) })
	wantClass(t, err, ErrEventLog)
}

// A real TPM to which the events of a log were measured has the values that the log explains, until somebody else
// measures something.
func TestEventLogExplainsPCRs(t *testing.T) {
	s := swtpm.Start(t)
	raw := eventlog.New(crypto.SHA1, crypto.SHA256, crypto.SHA384)
	for _, name := range []string{"SecureBoot", "dbx"} {
		raw.Add(7, eventlog.VariableConfig, eventlog.Variable(name, []byte{1}))
		s.Extend(7, string(eventlog.Variable(name, []byte{1})))
	}
	for _, bank := range []Bank{SHA1, SHA256, SHA384} {
		log := read(t, raw.Bytes(), bank)
		values := readPCRs(t, s, bank, []int{7, 10, 23})
		for pcr, value := range values {
			if !log.Explains(pcr, value) {
				t.Errorf("%s PCR %d is %x, and the log does not explain it", bank, pcr, value)
			}
		}
		if log.Explains(7, values[10]) {
			t.Errorf("%s: the log explains any value", bank)
		}
	}
	s.Extend(7, "by nobody who keeps this log")
	s.Extend(10, "by IMA")
	log := read(t, raw.Bytes(), SHA256)
	for pcr, value := range readPCRs(t, s, SHA256, []int{7, 10}) {
		if log.Explains(pcr, value) {
			t.Errorf("the log explains what it has not of PCR %d", pcr)
		}
	}
}

func TestChanges(t *testing.T) {
	event := func(pcr int, text, digest string) Event {
		return Event{PCR: pcr, Type: "EV_TEST", Text: text, Digest: []byte(digest)}
	}
	then := []Event{event(7, "SecureBoot", "on"), event(7, "dbx", "old"), event(7, "twice", "same"), event(7, "twice", "same"),
		event(7, "gone", "gone"), event(4, "shim", "old")}
	now := []Event{event(7, "twice", "same"), event(7, "SecureBoot", "on"), event(7, "dbx", "new"), event(7, "fresh", "fresh"),
		event(4, "shim", "new")}
	change := func(text, then, now string) Change {
		c := Change{PCR: 7, Type: "EV_TEST", Text: text}
		if then != "" {
			c.Then = []byte(then)
		}
		if now != "" {
			c.Now = []byte(now)
		}
		return c
	}
	want := []Change{change("dbx", "old", "new"), change("twice", "same", ""), change("gone", "gone", ""), change("fresh", "", "fresh")}
	if diff := cmp.Diff(want, Changes(7, then, now)); diff != "" {
		t.Error(diff)
	}
	if changes := Changes(7, then, then); changes != nil {
		t.Errorf("nothing changed: %v", changes)
	}
	if changes := Changes(11, then, now); changes != nil {
		t.Errorf("nothing was measured: %v", changes)
	}
}

func TestEventText(t *testing.T) {
	for name, raw := range realLogs() {
		log, err := ReadEventLog(bytes.NewReader(raw), SHA1)
		if err != nil {
			continue // of machines without this bank
		}
		for _, event := range log.Events {
			text, err := event.MarshalText()
			var again Event
			if err := errors.Join(err, again.UnmarshalText(text)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if diff := cmp.Diff(event, again); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
	for _, text := range []string{"", "7", "7 EV_IPL", "7 EV_IPL 00", "24 EV_IPL 00 x", "-1 EV_IPL 00 x", "7 EV_IPL zz x"} {
		if err := new(Event).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is an event", text)
		}
	}
}

// FuzzEventLog reads arbitrary bytes as a log: whatever is read can be printed, stored and compared.
func FuzzEventLog(f *testing.F) {
	for _, raw := range realLogs() {
		f.Add(raw)
	}
	f.Add(wrote(crypto.SHA1, crypto.SHA256).Bytes())
	f.Add(longest().Bytes())
	f.Add(append(wrote(crypto.SHA256).Bytes(), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, bank := range []Bank{SHA1, SHA256, SHA384} {
			log, err := ReadEventLog(bytes.NewReader(raw), bank)
			if err != nil {
				wantClass(t, err, ErrEventLog)
				continue
			}
			checkEvents(t, log)
		}
	})
}

func checkEvents(t *testing.T, log *EventLog) {
	for pcr := range maxPCRs {
		log.Explains(pcr, make([]byte, 32))
		if changes := Changes(pcr, log.Events, log.Events); changes != nil {
			t.Errorf("a log differs from itself: %v", changes)
		}
	}
	for _, event := range log.Events {
		text, err := event.MarshalText()
		var again Event
		if err := errors.Join(err, again.UnmarshalText(text)); err != nil {
			t.Error(err)
		}
		if len([]rune(event.Text)) > maxText || strings.ContainsFunc(event.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("text %q", event.Text)
		}
	}
}
