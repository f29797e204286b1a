package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"luksmediad/test/golden"
	"luksmediad/test/swtpm"
	"luksmediad/test/tang"
)

const keyFileContent = "0123456789abcdef\n0123456789abcde"

// requireSlots wants each keyslot as "number source result", and an exit code.
func (a answer) requireSlots(code int, want ...string) []slotLine {
	a.t.Helper()
	var got []string
	slots := lines[slotLine](a)
	for _, line := range slots {
		got = append(got, fmt.Sprintf("%s %s %s", name(line), line.Source, line.Result))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		a.t.Error(diff)
	}
	if a.code != code {
		a.t.Errorf("exit code %d, want %d\n%s", a.code, code, a.err)
	}
	return slots
}

// What is known without a key: the source of each keyslot, by its token.
func TestKeyList(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	s.Extend(7, "boot")
	d.addKey(1, keyFileContent)
	d.enrol(s, "--tpm2-pcrs=")
	s.Extend(7, "boot")
	d.enrol(s, "--tpm2-pcrs=7", "--tpm2-with-pin=yes")
	d.run("systemd-cryptenroll", "--recovery-key", d.container())
	for i, kind := range []string{"clevis", "systemd-fido2", "systemd-pkcs11", "something-else"} {
		d.addToken(5+i, kind)
	}
	slots := d.ask("key list --json").requireSlots(exitDone,
		"0 passphrase not_tested", "1 passphrase not_tested", "2 tpm2 not_tested", "3 tpm2 not_tested", "4 recovery not_tested",
		"5 clevis not_tested", "6 fido2 not_tested", "7 pkcs11 not_tested", "8 unknown not_tested")
	if diff := cmp.Diff([]int{1}, slots[3].Tokens); diff != "" || slots[3].Policy != "sha256:7, PIN" {
		t.Errorf("%s%+v", diff, slots[3])
	}
	if diff := cmp.Diff(&kdfLine{Type: "pbkdf2", Hash: "sha256", Iterations: 1000}, slots[0].KDF); diff != "" {
		t.Error(diff)
	}
	golden.Compare(t, "testdata/key-list.golden", d.ask("key list").out)
}

// A token of a kind that says nothing about the key is no reason not to try one.
func TestKeyTestBesideAnotherToken(t *testing.T) {
	d := newDisk(t)
	key := d.addKey(1, keyFileContent)
	d.run("cryptsetup", "token", "add", "--key-description=synapse", d.container())
	d.ask("key list --json").requireSlots(exitDone, "0 unknown not_tested", "1 unknown not_tested")
	d.ask("key test --json", "--keyfile", key, "--passphrase-file", d.path("passphrase")).requireSlots(exitDone, "0 passphrase ok", "1 keyfile ok")
}

// Every source is proven on its own keyslot, as an ordinary user.
func TestKeyTest(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	key := d.addKey(1, keyFileContent)
	d.enrol(s, "--tpm2-pcrs=", "--tpm2-with-pin=yes")
	pin := "--pin-file=" + d.file("pin", "1234\n", 0o600)
	recovery := strings.TrimSpace(d.run("systemd-cryptenroll", "--recovery-key", d.container()))
	tpm := "--tpm2-device=" + s.TCTI()
	d.ask("key test --json", tpm, pin, "--keyfile", key, "--passphrase-file", d.path("passphrase")).requireSlots(exitDone,
		"0 passphrase ok", "1 keyfile ok", "2 tpm2 ok", "3 recovery not_tested")
	plain := d.file("recovery", strings.ToUpper(strings.ReplaceAll(recovery, "-", ""))+"\n", 0o600)
	d.ask("key test --json", tpm, pin, "--passphrase-file", plain).requireSlots(exitDone,
		"0 passphrase not_tested", "1 passphrase not_tested", "2 tpm2 ok", "3 recovery ok")
	d.ask("key test --json", tpm, pin).requireSlots(exitDone,
		"0 passphrase not_tested", "1 passphrase not_tested", "2 tpm2 ok", "3 recovery not_tested")
	d.ask("key test --json", tpm).requireSlots(exitNoKey,
		"0 passphrase not_tested", "1 passphrase not_tested", "2 tpm2 pin_needed", "3 recovery not_tested")
	d.ask("key test --json", tpm, "--keyfile", key, "--pin-file", plain).requireSlots(exitDegraded,
		"0 passphrase not_tested", "1 keyfile ok", "2 tpm2 tpm_pin", "3 recovery not_tested")
	d.addToken(4, "systemd-fido2")
	golden.Compare(t, "testdata/key-test.golden", d.ask("key test", tpm, "--keyfile", key).out)
}

// A key that opens nothing has failed on each keyslot that nothing else opens.
func TestKeyTestOfWrongKeys(t *testing.T) {
	d := newDisk(t)
	key := d.addKey(1, keyFileContent)
	wrong := d.file("wrong", "not it", 0o400)
	newline := d.file("newline", keyFileContent+"\n", 0o400) // fault 48
	open := d.file("open", keyFileContent, 0o644)            // fault 47
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	d.ask("key test --json", "--passphrase-file", wrong).requireSlots(exitNoKey, "0 passphrase wrong_key", "1 passphrase wrong_key")
	d.ask("key test --json", "--passphrase-file", wrong, "--keyfile", key).requireSlots(exitDegraded, "0 passphrase wrong_key", "1 keyfile ok")
	passphrase := []string{"--passphrase-file", d.path("passphrase"), "--keyfile"}
	for file, class := range map[string]string{newline: "wrong_key", open: "key_unsafe", wrong + ".missing": "key_missing"} { // fault 46
		d.ask("key test --json", append(passphrase, file)...).requireSlots(exitDegraded, "0 passphrase ok", "1 passphrase "+class)
	}
	d.ask("key test --json").requireSlots(exitNoKey, "0 passphrase not_tested", "1 passphrase not_tested")
}

// Where every keyslot is opened by something else, a key that fits none still counts.
func TestKeyTestOfSuperfluousKey(t *testing.T) {
	d := newDisk(t)
	wrong := d.file("wrong", "not it", 0o400)
	slots := d.ask("key test --json", "--passphrase-file", d.path("passphrase"), "--keyfile", wrong).requireSlots(exitDegraded,
		"0 passphrase ok", "none keyfile wrong_key")
	if len(slots[1].Failures) != 1 || !strings.Contains(slots[1].Failures[0].Text, "wrong key") {
		t.Errorf("%+v", slots[1])
	}
}

// One key in two keyslots opens both.
func TestKeyTestOfSameKeyTwice(t *testing.T) {
	d := newDisk(t)
	d.addKey(7, diskPassphrase)
	d.ask("key test --json", "--passphrase-file", d.path("passphrase")).requireSlots(exitDone, "0 passphrase ok", "7 passphrase ok")
}

// fault 52: nobody can tell a damaged keyslot area from a wrong key.
func TestKeyTestOfDamagedKeyslot(t *testing.T) {
	d := newDisk(t)
	key := d.addKey(1, keyFileContent)
	d.overwrite(2*headerBytes, make([]byte, 4096)) // keyslot 0
	d.ask("key test --json", "--passphrase-file", d.path("passphrase"), "--keyfile", key).requireSlots(exitDegraded,
		"0 passphrase wrong_key", "1 keyfile ok")
}

// Each trouble of the TPM is told by its class, on the keyslots it concerns; the others are proven nevertheless.
func TestKeyTestOfTPMTrouble(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	s.Extend(7, "boot")
	d.enrol(s, "--tpm2-pcrs=7")
	s.Extend(7, "boot")
	d.enrol(s, "--tpm2-pcrs=", "--tpm2-with-pin=yes")
	s.Extend(7, "boot")
	pin := d.file("pin", "1234", 0o600)
	args := []string{"--tpm2-device=" + s.TCTI(), "--pin-file=" + pin}
	test := func(first, second string) {
		t.Helper()
		d.ask("key test --json", append(args, "--passphrase-file", d.path("passphrase"))...).requireSlots(
			map[bool]int{true: exitDone, false: exitDegraded}[first == "ok" && second == "ok"],
			"0 passphrase ok", "1 tpm2 "+first, "2 tpm2 "+second)
	}
	test("ok", "ok")
	s.Extend(7, "something new") // fault 41
	test("tpm_policy", "ok")
	s.Lockout() // fault 40
	test("tpm_"+map[bool]string{true: "policy", false: "lockout"}[d.systemdVersion() >= 256], "tpm_lockout")
	s.Replace() // fault 43
	d.share(s)
	test("tpm_srk_mismatch", "tpm_srk_mismatch")
	s.PowerCut() // fault 38
	test("tpm_absent", "tpm_absent")
	d.ask("key test --json", args...).requireSlots(exitNoKey, "0 passphrase not_tested", "1 tpm2 tpm_absent", "2 tpm2 tpm_absent")
}

// fault 44: what is wrong with one token ends the test of no other.
func TestKeyTestTriesEveryToken(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	s.Extend(7, "boot")
	d.enrol(s, "--tpm2-pcrs=7")
	d.enrol(s, "--tpm2-pcrs=")
	d.forge(func(document map[string]any) {
		token := map[string]any{"type": "systemd-tpm2", "keyslots": []string{"2"}, "tpm2-blob": "AAAA"}
		document["tokens"].(map[string]any)["7"] = token
	})
	s.Extend(7, "something else") // fault 41
	d.share(s)
	slots := d.ask("key test --json", "--tpm2-device="+s.TCTI()).requireSlots(exitDegraded,
		"0 passphrase not_tested", "1 tpm2 tpm_policy", "2 tpm2 ok")
	if diff := cmp.Diff([]int{1, 7}, slots[2].Tokens); diff != "" {
		t.Error(diff)
	}
	if failures := slots[2].Failures; len(failures) != 1 || *failures[0].Token != 7 || failures[0].Class != "token_malformed" {
		t.Errorf("%+v", failures)
	}
}

// A signed policy takes the file of signatures, without which it is neither unsealed nor compared.
func TestKeysUnderSignedPolicy(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	boot := func() {
		s.Extend(11, "kernel")
		d.share(s)
	}
	boot()
	public, signatures := d.sign(s, 11)
	d.enrol(s, "--tpm2-pcrs=", "--tpm2-public-key="+public, "--tpm2-public-key-pcrs=11", "--tpm2-signature="+signatures)
	boot()
	tpm, signed := "--tpm2-device="+s.TCTI(), "--tpm2-signature="+signatures
	d.ask("key test --json", tpm, signed).requireSlots(exitDone, "0 passphrase not_tested", "1 tpm2 ok")
	d.ask("key test --json", tpm).requireSlots(exitNoKey, "0 passphrase not_tested", "1 tpm2 tpm_signature")
	drift := func(code int, result string, args ...string) {
		t.Helper()
		a := d.ask("key drift --json", append(args, tpm)...)
		if all := lines[driftLine](a); len(all) != 2 || all[0].Result != notTested || all[1].Comparison != result || a.code != code {
			t.Errorf("%+v", a)
		}
	}
	drift(exitDone, "match", signed)
	drift(exitDone, "not_comparable")
	s.Extend(11, "another kernel")
	drift(exitVerify, "differs", signed)
	if a := d.ask("key drift", tpm, signed); !strings.Contains(a.out, "keyslot 1: no signature is about the PCRs as they are\n") {
		t.Errorf("%+v", a)
	}
	d.ask("key test --json", tpm, signed).requireSlots(exitNoKey, "0 passphrase not_tested", "1 tpm2 tpm_policy")
}

// Drift is found without unsealing: also of a token with a PIN, and of one that cannot be unsealed here.
func TestKeyDrift(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	for _, pcrs := range []string{"0+7", "7", ""} {
		s.Extend(7, "boot")
		d.enrol(s, "--tpm2-pcrs="+pcrs, "--tpm2-with-pin="+map[bool]string{true: "yes", false: "no"}[pcrs == "7"])
	}
	d.addToken(9, "systemd-tpm2")
	s.Extend(7, "boot")
	d.share(s)
	drift := func(code int, want ...string) []driftLine {
		t.Helper()
		a := d.ask("key drift --json", "--tpm2-device="+s.TCTI())
		var got []string
		all := lines[driftLine](a)
		for _, line := range all {
			got = append(got, fmt.Sprintf("%d %s %s%v %s", line.Keyslot, line.Comparison, line.Bank, line.PCRs, line.Result))
		}
		if diff := cmp.Diff(want, got); diff != "" || a.code != code {
			t.Errorf("exit code %d, want %d\n%s%s", a.code, code, diff, a.err)
		}
		return all
	}
	const first, last = "0  [] not_tested", "9 not_comparable [] token_malformed"
	drift(exitDone, first, "1 match sha256[0 7] ok", "2 match sha256[7] ok", "3 match [] ok", last)
	golden.Compare(t, "testdata/key-drift.golden", d.ask("key drift", "--tpm2-device="+s.TCTI()).out)
	s.Extend(0, "new firmware")
	all := drift(exitVerify, first, "1 differs sha256[0 7] tpm_policy", "2 match sha256[7] ok", "3 match [] ok", last)
	if moved := all[1]; len(moved.Values["0"]) != 64 || moved.Live == moved.Sealed || len(moved.Live) != 64 {
		t.Errorf("%+v", moved)
	}
	s.Deallocate(tpm2.TPMAlgSHA256)
	d.share(s)
	drift(exitVerify, first, "1 differs sha256[0 7] tpm_bank", "2 differs sha256[7] tpm_bank", "3 match [] ok", last)
	s.PowerCut() // fault 38
	drift(exitNoKey, first, "1 not_comparable [] tpm_absent", "2 not_comparable [] tpm_absent", "3 not_comparable [] tpm_absent", last)
	if a := d.ask("key drift", "--tpm2-device="+s.TCTI()); a.code != exitNoKey || !strings.Contains(a.out, "keyslot 1: cannot open TPM") {
		t.Errorf("%+v", a)
	}
}

// A token whose keyslot is gone is none.
func TestKeyDriftWithoutTPMToken(t *testing.T) {
	d := newDisk(t)
	d.forge(func(document map[string]any) {
		document["tokens"].(map[string]any)["0"] = map[string]any{"type": "systemd-tpm2", "keyslots": []string{}}
	})
	d.ask("key test --json", "--passphrase-file", d.path("passphrase")).requireSlots(exitDone, "0 passphrase ok")
	if a := d.ask("key drift"); a.code != exitDone || a.out != "no systemd-tpm2 token\n" {
		t.Errorf("%+v", a)
	}
}

// No key that was offered appears in anything printed.
func TestKeyTestPrintsNoKey(t *testing.T) {
	d := newDisk(t)
	key := d.addKey(1, "canary-of-the-key-file-0123456789")
	wrong := d.file("wrong", "canary-of-a-wrong-passphrase", 0o400)
	for _, form := range []string{"key test", "key test --json"} {
		a := d.ask(form, "--keyfile", key, "--passphrase-file", wrong)
		if a.code != exitDegraded || strings.Contains(a.out+a.err, "canary") {
			t.Errorf("%+v", a)
		}
	}
}

// A clevis token is decrypted by the server that it names, also in a container of which nothing else is known.
func TestKeyTestAsksTang(t *testing.T) {
	d, server := newDisk(t), tang.Start(t)
	d.run("clevis", "luks", "bind", "-y", "-d", d.container(), "-k", d.path("passphrase"), "tang", fmt.Sprintf(`{"url":%q}`, server.URL()))
	passphrase := "--passphrase-file=" + d.path("passphrase")
	lines := d.ask("key test --json").requireSlots(exitDone, "0 passphrase not_tested", "1 clevis ok")
	if diff := cmp.Diff([]int{0}, lines[1].Tokens); diff != "" {
		t.Error(diff)
	}
	server.Stop()
	d.ask("key test --json").requireSlots(exitNoKey, "0 passphrase not_tested", "1 clevis tang_unreachable")
	d.ask("key test --json", passphrase).requireSlots(exitDegraded, "0 passphrase ok", "1 clevis tang_unreachable")
	d.addToken(2, "clevis")
	d.ask("key test --json", passphrase).requireSlots(exitDegraded, "0 passphrase ok", "1 clevis tang_unreachable", "2 clevis token_malformed")
}
