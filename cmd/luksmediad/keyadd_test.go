package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/volume"
)

// A new TPM key is bound to what the configuration says, unless flags say something else. A PIN is never left out in silence.
func TestConfiguredSeal(t *testing.T) {
	dir := t.TempDir()
	for name, pin := range map[string]string{"configured": "1234", "given": "5678"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(pin), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	loaded := &config.Config{Unlock: []config.KeySource{
		{TPM2: &config.TPM2{Device: "auto", PIN: filepath.Join(dir, "configured"), PCRs: []int{7}, Bank: config.SHA384}},
		{TPM2: &config.TPM2{Device: "/dev/tpmrm1", PIN: config.AskPIN}},
		{TPM2: &config.TPM2{Device: "/dev/tpmrm2", PIN: config.NoPIN}},
	}}
	for name, test := range map[string]struct {
		args   []string
		device string
		pin    string
		asks   bool
	}{
		"configured":   {nil, "auto", "1234", false},
		"file":         {[]string{"--pin-file", filepath.Join(dir, "given")}, "auto", "5678", false},
		"none":         {[]string{"--pin=false"}, "auto", "", false},
		"asked":        {[]string{"--pin"}, "auto", "", true},
		"another TPM":  {[]string{"--tpm2-device", "/dev/tpmrm1"}, "/dev/tpmrm1", "", true},
		"without PIN":  {[]string{"--tpm2-device", "/dev/tpmrm2"}, "/dev/tpmrm2", "", false},
		"unconfigured": {[]string{"--tpm2-device", "/dev/tpmrm9"}, "/dev/tpmrm9", "1234", false},
	} {
		t.Run(name, func(t *testing.T) {
			null, err := os.Open(os.DevNull) // nobody to ask
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			k := &keyAddTPM2{keyAdd: keyAdd{app: &app{stdin: null, stderr: null}}}
			cmd := k.command()
			if err := cmd.ParseFlags(test.args); err != nil {
				t.Fatal(err)
			}
			source := k.source(loaded)
			options, err := k.sealOptions(cmd, source)
			defer options.PIN.Wipe()
			if _, asked := errors.AsType[usageError](err); asked != test.asks || !asked && err != nil {
				t.Fatalf("asks: %t, %v", asked, err)
			}
			if source.Device != test.device || string(options.PIN.Bytes()) != test.pin {
				t.Errorf("device %s, PIN %q", source.Device, options.PIN.Bytes())
			}
			if source.Device == "auto" && !slices.Equal(source.PCRs, []int{7}) {
				t.Errorf("PCRs %v", source.PCRs)
			}
		})
	}
}

// What no TPM has is a mistake of the command line, whatever else is to be done.
func TestSealUsage(t *testing.T) {
	for _, args := range [][]string{{"--bank", "md5", "--pcrs", "7"}, {"--bank", "md5"}, {"--pcrs", "7,7"}, {"--pcrs", "7,x"}, {"--pcrs", "24"}} {
		k := &keyAddTPM2{keyAdd: keyAdd{app: &app{}}}
		cmd := k.command()
		if err := cmd.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		if err := k.run(cmd); explain(err).ExitCode != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// A key file beside the container is added only by who has read what that means.
func TestKeyFileAsks(t *testing.T) {
	same := volume.Protection{Level: volume.LevelNoneSameDisk, Text: "it lies beside it"}
	for typed, want := range map[string]error{"y\n": nil, "n\n": volume.ErrConfirmation} {
		person, program := terminal(t)
		k := &keyAdd{app: &app{stdin: program, stderr: program}}
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		if err := k.acceptFile(t.Context(), same); !errors.Is(err, want) {
			t.Errorf("%q: %v", typed, err)
		}
		if shown := seen(t, person, "add it nevertheless? [y/N] "); !strings.Contains(shown, "warning: none_same_disk: it lies beside it\r\n") {
			t.Errorf("shown: %q", shown)
		}
	}
	s := newSession(t)
	k := &keyAdd{app: &app{stdin: s.in, stderr: s.err}}
	if err := k.acceptFile(t.Context(), volume.Protection{Level: volume.LevelUnknown}); err != nil { // nobody to ask
		t.Error(err)
	}
	if _, ok := errors.AsType[usageError](k.acceptFile(t.Context(), same)); !ok {
		t.Error("a key beside the container was accepted by nobody")
	}
}
