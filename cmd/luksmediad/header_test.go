package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/test/golden"
)

// check runs header check and wants an exit code and a result.
func (d *disk) check(code int, result string) headerReport {
	d.t.Helper()
	a := d.ask("header check --json")
	reports := lines[headerReport](a)
	if len(reports) != 1 || a.code != code || reports[0].Result != result {
		d.t.Fatalf("exit code %d, want %d and %s\n%s%s", a.code, code, result, a.out, a.err)
	}
	return reports[0]
}

func TestHeaderCheck(t *testing.T) {
	d := newDisk(t)
	d.run("cryptsetup", "luksUUID", "--batch-mode", "--uuid=5b0ea6b2-3d35-4c2b-a0f1-b2a4c4b5d1e7", d.container())
	d.addKey(3, keyFileContent)
	report := d.check(exitDone, "ok")
	want := []copyLine{{"primary header", 0, report.SequenceID}, {"secondary header", headerBytes, report.SequenceID}}
	if diff := cmp.Diff(want, report.Copies); diff != "" || report.SequenceID == 0 {
		t.Error(diff)
	}
	if len(report.Slots) != 2 || *report.Slots[1].Keyslot != 3 || report.Slots[1].Source != "passphrase" || report.Slots[1].Result != notTested {
		t.Errorf("keyslots %+v", report.Slots)
	}
	golden.Compare(t, "testdata/header-check.golden", strings.ReplaceAll(d.ask("header check").out, d.container(), "disk.luks"))
}

// fault 50: a damaged copy is reported and stays as it is, in every command.
func TestOneHeaderCopyDamaged(t *testing.T) {
	for _, offset := range []int64{0, headerBytes} {
		d := newDisk(t)
		d.overwrite(offset, make([]byte, headerBytes))
		if report := d.check(exitDegraded, string(health.ReasonCopyDamaged)); len(report.Damage) != 1 || len(report.Copies) != 1 || report.Damage[0].Offset != offset {
			t.Errorf("%+v", report)
		}
		d.ask("key list --json").requireSlots(exitDone, "0 passphrase not_tested")
		d.ask("key test --json", "--passphrase-file", d.path("passphrase")).requireSlots(exitDone, "0 passphrase ok")
		d.ask("key drift")
		// What would be the wrong tool for this: it writes.
		before := d.sum()
		d.run("cryptsetup", "luksDump", d.container())
		if d.sum() == before {
			t.Error("cryptsetup has repaired nothing: the test proves nothing")
		}
	}
}

// A crash between the two writes leaves an older copy.
func TestStaleHeaderCopy(t *testing.T) {
	d := newDisk(t)
	old := d.header(headerBytes)
	d.addKey(1, keyFileContent)
	d.overwrite(headerBytes, old)
	report := d.check(exitDegraded, string(health.ReasonCopyDamaged))
	if len(report.Copies) != 2 || report.Copies[1].SequenceID >= report.SequenceID || report.Damage[0].Reason != string(luks2.ReasonStale) {
		t.Errorf("%+v", report)
	}
	d.ask("key list --json").requireSlots(exitDone, "0 passphrase not_tested", "1 passphrase not_tested")
}

// fault 51
func TestBothHeaderCopiesDamaged(t *testing.T) {
	d := newDisk(t)
	d.overwrite(5000, []byte("x"))
	d.overwrite(headerBytes+5000, []byte("x"))
	report := d.check(exitFailed, "header_damaged")
	if len(report.Damage) != 2 || report.Damage[1].Reason != string(luks2.ReasonChecksum) || report.UUID != "" {
		t.Errorf("%+v", report)
	}
	if a := d.ask("key test", "--passphrase-file", d.path("passphrase")); a.code != exitFailed || a.out != "" {
		t.Errorf("%+v", a)
	}
}

// A header that says something else than what luksmediad accepts is refused before any key is tried on it.
func TestRefusedHeader(t *testing.T) {
	d := newDisk(t)
	d.forge(func(document map[string]any) {
		document["segments"].(map[string]any)["0"].(map[string]any)["encryption"] = "cipher_null-ecb"
		document["config"].(map[string]any)["requirements"] = map[string]any{"mandatory": []string{"online-reencrypt"}} // fault 53
	})
	report := d.check(exitRefused, "header_refused")
	var fields []string
	for _, r := range report.Refusals {
		fields = append(fields, r.Field+"="+r.Value)
		if r.Allowed == "" {
			t.Errorf("%+v", r)
		}
	}
	want := []string{"config.requirements.mandatory=online-reencrypt", "segments.0.encryption=cipher_null-ecb",
		"keyslots.key_size=512 bits"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Error(diff)
	}
	for _, words := range []string{"key list", "key test", "key drift"} {
		if a := d.ask(words, "--passphrase-file", d.path("passphrase")); a.code != exitRefused || a.out != "" ||
			!strings.Contains(a.err, "\ntype: luksmediad header check\n") {
			t.Errorf("%s: %+v", words, a)
		}
	}
}

// What a header says does not steer the terminal.
func TestHeaderWithEscapes(t *testing.T) {
	d := newDisk(t)
	d.forge(func(document map[string]any) {
		document["segments"].(map[string]any)["0"].(map[string]any)["\x1b[2J\u009b"] = "x"
		document["tokens"].(map[string]any)["0"] = map[string]any{"type": "systemd-tpm2", "keyslots": []string{"0"}, "\x1b[2J": 0}
	})
	for _, words := range []string{"header check", "key list"} {
		a := d.ask(words)
		if a.code != exitRefused || !strings.Contains(a.out+a.err, "[2J") || strings.ContainsAny(a.out+a.err, "\x1b\u009b") {
			t.Errorf("%+v", a)
		}
	}
}

// fault 53: one sequence number, two headers.
func TestTwoHeadersInOne(t *testing.T) {
	d := newDisk(t)
	secondary := d.header(headerBytes)
	d.forge(func(document map[string]any) {
		document["tokens"].(map[string]any)["0"] = map[string]any{"type": "x", "keyslots": []string{}}
	})
	d.overwrite(headerBytes, secondary)
	if report := d.check(exitRefused, "header_refused"); len(report.Refusals) != 1 || len(report.Copies) != 2 {
		t.Errorf("%+v", report)
	}
}

// fault 54: each of these is told apart.
func TestNoContainer(t *testing.T) {
	d := newDisk(t)
	short := d.file("short", string(d.header(0)), 0o600)
	tests := []struct {
		path  string
		code  int
		class string
	}{
		{d.path("missing"), exitNotSetUp, "container_missing"},
		{d.file("empty", "", 0o600), exitRefused, "not_luks2"},
		{d.file("text", strings.Repeat("text", 10000), 0o600), exitRefused, "not_luks2"},
		{d.file("luks1", "LUKS\xba\xbe\x00\x01"+strings.Repeat("\x00", 10000), 0o600), exitRefused, "luks1"},
		{d.dir, exitRefused, "container_foreign"},
		{"/dev/null", exitRefused, "container_foreign"},
		{short, exitRefused, "header_refused"},
	}
	for _, test := range tests {
		for _, words := range []string{"header check", "key list", "key test", "key drift"} {
			a := runProgram(t, append(strings.Fields(words), "--json", "--container", test.path)...)
			if a.code != test.code || !strings.Contains(a.out, `"`+test.class+`"`) || strings.Count(a.out, "\n") != 1 {
				t.Errorf("%s %s: %+v", words, test.path, a)
			}
		}
	}
}

// The configured container is compared with what was recorded: keyslots of our own are marked, missing ones told.
func TestRecordedContainer(t *testing.T) {
	d := newDisk(t)
	key := d.addKey(1, keyFileContent)
	container, err := keys.Read(d.container())
	if err != nil {
		t.Fatal(err)
	}
	salt := func(keyslot int) volume.Hex { return container.Header.Metadata.Keyslots[keyslot].KDF.Salt }
	record := &volume.Record{Pin: container.Header.Pin(container.Bytes), Keyslots: []volume.Keyslot{
		{Slot: 0, Source: "recovery", Salt: salt(0)}, {Slot: 1, Source: "keyfile", Salt: salt(1)}, {Slot: 2, Source: "tpm2"}}}
	loaded := &config.Config{Unlock: []config.KeySource{{Keyfile: &config.Keyfile{Path: key}}}}
	vol := volume.New(loaded, volume.Paths{State: t.TempDir(), Runtime: t.TempDir()}, nil)
	s := &subject{Container: container, config: loaded, volume: vol, record: record}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	var got []slotLine
	for _, slot := range s.slots() {
		got = append(got, s.line(slot))
	}
	if len(got) != 3 || got[0].Source != "recovery" || got[1].Source != "keyfile" || !got[1].Ours || got[1].Result != notTested {
		t.Errorf("%+v", got)
	}
	if missing := got[2]; missing.Source != "tpm2" || missing.Result != "no_keyslot" || missing.KDF != nil || len(missing.Failures) != 1 {
		t.Errorf("%+v", missing)
	}
	if sources, err := (&containerFlags{app: &app{}}).sources(t.Context(), s); err != nil || len(sources) != 1 || sources[0].Name() != "keyfile" {
		t.Errorf("%v, %v", sources, err)
	}
	s.Bytes += 4096
	report := reportHeader(s, s.check())
	if len(report.Mismatches) != 1 || report.Mismatches[0].Field != "container_bytes" || explain(s.check()).ExitCode != exitRefused {
		t.Errorf("%+v", report)
	}
}

// A container that may only be read is as good.
func TestReadOnlyContainer(t *testing.T) {
	d := newDisk(t)
	for path, mode := range map[string]os.FileMode{d.container(): 0o444, filepath.Dir(d.container()): 0o555} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	d.check(exitDone, "ok")
	d.ask("key test --json", "--passphrase-file", d.path("passphrase")).requireSlots(exitDone, "0 passphrase ok")
	if err := os.Chmod(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
}
