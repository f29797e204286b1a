package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/test/swtpm"
)

// configured is the container as that of a volume with key sources.
func (d *disk) configured(sources ...config.KeySource) *subject {
	d.t.Helper()
	c := &config.Config{Volume: config.Volume{Name: "test", Container: d.container()}, Unlock: sources}
	container, err := keys.Read(d.container())
	d.must(err)
	return &subject{Container: container, config: c, volume: volume.New(c, volume.Paths{State: d.path("state")}, command.Runner{})}
}

// Each token is for the configured TPM that has its key, wherever that stands, with the signatures and the PIN file that are
// configured for it: for key test as for key drift.
func TestKeysInConfiguredTPMs(t *testing.T) {
	d, one, two := newDisk(t), swtpm.Start(t), swtpm.Start(t)
	d.enrol(one, "--tpm2-pcrs=", "--tpm2-with-pin=yes")
	two.Extend(11, "kernel")
	public, signatures := d.sign(two, 11)
	d.enrol(two, "--tpm2-pcrs=", "--tpm2-public-key="+public, "--tpm2-public-key-pcrs=11", "--tpm2-signature="+signatures)
	two.Extend(11, "kernel")
	s := d.configured(
		config.KeySource{TPM2: &config.TPM2{Device: two.TCTI(), Signature: signatures}},
		config.KeySource{TPM2: &config.TPM2{Device: one.TCTI(), PIN: pinFile(d, "1234\n")}})
	requireKeys(t, s, "0 not_tested, 1 ok, 2 ok", "0 not_tested, 1 ok, 2 ok")
	two.Extend(11, "another kernel")
	requireKeys(t, s, "0 not_tested, 1 ok, 2 tpm_policy", "0 not_tested, 1 ok, 2 tpm_policy") // fault 41
	two.PowerCut()                                                                            // fault 38; whether the token names its TPM depends on who made it
	class := map[bool]string{true: "tpm_absent", false: "tpm_signature"}[d.systemdVersion() >= 254]
	requireKeys(t, s, "0 not_tested, 1 ok, 2 "+class, "0 not_tested, 1 ok, 2 "+class)
}

// pinFile is as private as the daemon wants it, since it is in the configuration.
func pinFile(d *disk, content string) string {
	d.t.Helper()
	path := d.path("configured-pin")
	d.must(os.WriteFile(path, []byte(content), 0o400))
	return path
}

// fault 40: key test takes a configured PIN file as the daemon does: once, and only if it is private.
func TestKeyTestOfConfiguredPINFile(t *testing.T) {
	d, tpm := newDisk(t), swtpm.Start(t)
	d.enrol(tpm, "--tpm2-pcrs=", "--tpm2-with-pin=yes")
	s := d.configured(config.KeySource{TPM2: &config.TPM2{Device: tpm.TCTI(), PIN: d.file("pin", "1234", 0o644)}})
	if got := tested(t, s); got != "0 not_tested, 1 key_unsafe" {
		t.Error(got)
	}
	s = d.configured(config.KeySource{TPM2: &config.TPM2{Device: tpm.TCTI(), PIN: pinFile(d, "0000")}})
	for range 5 { // swtpm locks after 3
		if got := tested(t, s); got != "0 not_tested, 1 tpm_pin" {
			t.Error(got)
		}
	}
}

// requireKeys wants the results of key test and key drift.
func requireKeys(t *testing.T, s *subject, test, drift string) {
	t.Helper()
	if diff := cmp.Diff(test, tested(t, s)); diff != "" {
		t.Errorf("key test: %s", diff)
	}
	tpms, _, err := (&containerFlags{app: &app{}}).tpms(s)
	if err != nil {
		t.Fatal(err)
	}
	drifts, err := keys.Live{TPMs: tpms}.Drifts(t.Context(), s.Header)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	for _, line := range s.driftLines(s.slots(), drifts) {
		got += fmt.Sprintf(", %d %s", line.Keyslot, line.Result)
	}
	if diff := cmp.Diff(", "+drift, got); diff != "" {
		t.Errorf("key drift: %s", diff)
	}
}

func tested(t *testing.T, s *subject) string {
	t.Helper()
	tpms, pin, err := (&containerFlags{app: &app{}}).tpms(s)
	if err != nil || pin != nil {
		t.Fatalf("%v, %v", err, pin)
	}
	test := &keys.Test{Container: s.Container, Cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}}, TPMs: tpms, Slots: s.slots()}
	if _, err := test.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got string
	for _, slot := range test.Slots {
		line := s.line(slot)
		if got += fmt.Sprintf("%d %s", *line.Keyslot, line.Result); slot != test.Slots[len(test.Slots)-1] {
			got += ", "
		}
	}
	return got
}
