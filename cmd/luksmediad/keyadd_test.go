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
	"luksmediad/pkg/unlock/secret"
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

// A key that no configured source tries is told, with the source that would.
func TestUntriedTPM2(t *testing.T) {
	dir := t.TempDir()
	file := func(name, pin string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(pin+"\n"), 0o400); err != nil {
			t.Fatal(err)
		}
		return path
	}
	same, other := file("same", "1234"), file("other", "5678")
	tpm := func(device, pin string) config.KeySource {
		return config.KeySource{TPM2: &config.TPM2{Device: device, PIN: pin}}
	}
	const node, host = "/dev/tpmrm0", "swtpm:host=tpm,port=2321"
	for name, test := range map[string]struct {
		sources              []config.KeySource
		device, pin, pinFile string
		want                 string
	}{
		"no PIN":                {[]config.KeySource{tpm(node, config.AskPIN)}, node, "", "", ""},
		"spelt differently":     {[]config.KeySource{tpm("device:"+node, config.NoPIN)}, node, "", "", ""},
		"no TPM":                {nil, node, "", "", "tpm2: {device: /dev/tpmrm0, pin: none}"},
		"another TPM":           {[]config.KeySource{tpm("/dev/tpmrm1", config.AskPIN)}, host, "1234", "", `tpm2: {device: "` + host + `", pin: ask}`},
		"PIN asked for":         {[]config.KeySource{tpm(node, config.NoPIN), tpm(node, config.AskPIN)}, node, "1234", other, ""},
		"PIN of no source":      {[]config.KeySource{tpm("device:"+node, config.NoPIN)}, node, "1234", "", "tpm2: {device: device:/dev/tpmrm0, pin: ask}"},
		"PIN in a file":         {[]config.KeySource{tpm(node, config.NoPIN)}, node, "1234", "/root/pin", "tpm2: {device: /dev/tpmrm0, pin: /root/pin}"},
		"PIN in a pipe":         {[]config.KeySource{tpm(node, config.NoPIN)}, node, "1234", "/dev/fd/63", "tpm2: {device: /dev/tpmrm0, pin: ask}"},
		"same PIN":              {[]config.KeySource{tpm(node, same)}, node, "1234", "", ""},
		"another PIN":           {[]config.KeySource{tpm(node, other)}, node, "1234", "", "tpm2: {device: /dev/tpmrm0, pin: ask}"},
		"PIN file that is away": {[]config.KeySource{tpm(node, filepath.Join(dir, "none"))}, node, "1234", "", "tpm2: {device: /dev/tpmrm0, pin: ask}"},
	} {
		t.Run(name, func(t *testing.T) {
			wanted := volume.EnrolTPM2{Device: test.device}
			if test.pin != "" {
				pin, err := secret.From([]byte(test.pin))
				if err != nil {
					t.Fatal(err)
				}
				defer pin.Wipe()
				wanted.PIN = pin
			}
			k := &keyAddTPM2{pinFile: test.pinFile}
			got := k.lacking(t.Context(), test.sources, wanted)
			if got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			requireSource(t, got)
		})
	}
}

// requireSource wants what is told to be a line of a configuration, unless it is empty.
func requireSource(t *testing.T, line string) {
	t.Helper()
	text := "stores:\n  - path: /srv/synapse/media_store\nunlock:\n  - keyfile: {}\n  - " + line + "\n"
	if _, err := config.Parse("config.yaml", []byte(text)); line != "" && err != nil {
		t.Error(err)
	}
}

func TestSourceLines(t *testing.T) {
	for _, path := range []string{"/root/key", "/mnt/a stick, 2/key: {old} \"#1\"", "/mnt/schlüssel"} {
		requireSource(t, "keyfile: {path: "+yamlWord(path)+"}")
	}
	requireSource(t, "clevis: {}")
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
