package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/boot"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/golden"
	"luksmediad/test/swtpm"
)

func TestForeseen(t *testing.T) {
	damaged := &luks2.Header{Damage: []*luks2.Damage{{Part: luks2.Part("secondary header")}}}
	tests := []struct {
		header *luks2.Header
		err    error
		want   string
	}{
		{&luks2.Header{}, nil, "record ok, container ok, header ok"},
		{damaged, nil, "record ok, container ok, header warning"}, // fault 50
		{nil, &volume.StepError{Step: volume.StepRecord, Err: volume.ErrNotSetUp}, "record failed"},
		{nil, &volume.StepError{Step: volume.StepContainer, Err: volume.ErrContainerMissing}, "record ok, container failed"}, // fault 54
		{nil, &volume.StepError{Step: volume.StepHeader, Err: luks2.ErrPinMismatch}, "record ok, container ok, header failed"},
	}
	for _, test := range tests {
		var got []string
		for _, check := range foreseen(test.header, test.err) {
			got = append(got, check.Name+" "+string(check.Status))
			if check.Status == boot.Failed && !errors.Is(check.Err, test.err) {
				t.Errorf("%v", check.Err)
			}
		}
		if diff := cmp.Diff(test.want, strings.Join(got, ", ")); diff != "" {
			t.Error(diff)
		}
	}
}

// What is printed, what --quiet leaves of it, and with which code it ends.
func TestForecast(t *testing.T) {
	good := func(names ...string) (checks []boot.Check) {
		for _, name := range names {
			checks = append(checks, boot.Check{Name: name, Status: boot.OK})
		}
		return checks
	}
	bad := func(name string, status boot.Status, err error) boot.Check {
		return boot.Check{Name: name, Status: status, Text: err.Error(), Err: err}
	}
	source := func(check boot.Check, keyslot int) boot.Attempt { return boot.Attempt{Check: check, Keyslot: keyslot} }
	opens := func(name string, keyslot int) boot.Attempt {
		return source(boot.Check{Name: name, Status: boot.OK, Text: fmt.Sprintf("opens keyslot %d", keyslot)}, keyslot)
	}
	moved := source(bad("tpm2", boot.Failed, fmt.Errorf("cannot unseal the key: %w", tpm2.ErrPolicy)), -1)
	damaged := boot.Check{Name: "header", Status: boot.Warning, Text: "secondary header at byte 16384: checksum", Err: volume.ErrHeaderDamaged}
	before, after := good("config", "record", "container", "header"), good("service", "gate")
	tests := []struct {
		name string
		exit int
		boot.Forecast
	}{
		{"by the first source", exitDone, boot.Forecast{Before: before, Attempts: []boot.Attempt{opens("tpm2", 1), opens("keyfile", 2)}, After: after}},
		{"by the second source", exitDegraded, boot.Forecast{Before: before, Attempts: []boot.Attempt{moved, opens("keyfile", 2)}, After: after}},
		{"with warnings", exitDegraded, boot.Forecast{
			Before:   append(good("config", "record", "container"), damaged),
			After:    append(good("service"), bad("gate", boot.Warning, fmt.Errorf("docker.service does not require luksmediad-gate.service, or is not ordered after it: %w", boot.ErrUngated))),
			Attempts: []boot.Attempt{source(bad("keyfile", boot.Warning, &boot.PlaceError{Path: "/mnt/key", Reason: fmt.Errorf("/mnt/key lies on a removable device at /mnt: %w", boot.ErrDoubtful)}), 2)}}},
		{"by a person", exitNoKey, boot.Forecast{Before: before, After: after, Attempts: []boot.Attempt{
			source(boot.Check{Name: "tpm2", Status: boot.Attended, Text: "cannot unseal the key: PIN needed"}, -1),
			source(bad("keyfile", boot.Failed, &unlock.FileError{Path: "/root/.luks-media.key",
				Reason: fmt.Errorf("cannot read key file /root/.luks-media.key: %w", unlock.ErrKeyFileMissing)}), -1)}}},
		{"nothing starts it", exitNotSetUp, boot.Forecast{
			Before: before, After: []boot.Check{bad("service", boot.Failed, fmt.Errorf("luksmediad.service is not enabled: %w", boot.ErrNotStarted))},
			Attempts: []boot.Attempt{opens("tpm2", 1)}}},
		{"it is not installed", exitNotSetUp, boot.Forecast{
			Before: before, After: []boot.Check{bad("service", boot.Failed, fmt.Errorf("luksmediad.service: %w: %w", boot.ErrNotInstalled, boot.ErrNotStarted))},
			Attempts: []boot.Attempt{opens("tpm2", 1)}}},
		{"the container lies in memory", exitNotSetUp, boot.Forecast{
			Before: append(good("config", "record"), bad("container", boot.Failed, &boot.PlaceError{Path: "/srv/media.luks",
				Reason: fmt.Errorf("/srv/media.luks lies in memory, on the tmpfs at /srv: %w", boot.ErrGone)})), After: good("service")}},
		{"another container", exitRefused, boot.Forecast{
			Before: append(good("config", "record", "container"), bad("header", boot.Failed, fmt.Errorf("it is not the recorded one: %w", luks2.ErrPinMismatch))),
			After:  good("service")}},
	}
	c := &config.Config{Volume: config.Volume{Name: "synapse-media", Container: "/srv/media.luks"},
		Stores: []config.Store{{Name: "media", Path: "/srv/media", Service: &config.Service{Docker: "synapse"}}}}
	var text strings.Builder
	for _, test := range tests {
		f := &foresight{config: c, forecast: test.Forecast}
		if opener := f.forecast.Opener(); opener != nil && opener.Name == "tpm2" {
			f.bindings = []boot.Binding{{Keyslot: 1, Bank: tpm2.SHA256, PCRs: []int{0, 7}}}
		}
		answer := f.answer()
		if answer.ExitCode != test.exit {
			t.Errorf("%s: exit code %d, want %d", test.name, answer.ExitCode, test.exit)
		}
		raw, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "== %s\n", test.name)
		err = errors.Join(printForecast(&text, answer, false))
		fmt.Fprintln(&text, "-- quiet")
		err = errors.Join(err, printForecast(&text, answer, true))
		fmt.Fprintf(&text, "-- json\n%s\n\n", raw)
		if err != nil {
			t.Fatal(err)
		}
	}
	golden.Compare(t, "testdata/will-boot.golden", text.String())
}

// A TPM key with a PIN needs a person, unless the PCRs would refuse the right PIN too. Nobody's attempt is spent on it.
func TestForesightOfPIN(t *testing.T) {
	d, s := newDisk(t), swtpm.Start(t)
	s.Extend(7, "boot")
	d.enrol(s, "--tpm2-pcrs=7", "--tpm2-with-pin=yes") // and the TPM restarts
	container, err := keys.Read(d.container())
	d.must(err)
	look := func(want boot.Status, class error) string {
		t.Helper()
		c := &config.Config{Volume: config.Volume{Name: "test", Container: d.container()}, Unlock: []config.KeySource{{TPM2: &config.TPM2{Device: s.TCTI()}}}}
		f := &foresight{config: c, volume: volume.New(c, volume.Paths{State: t.TempDir()}, command.Runner{}), machine: boot.Machine{Root: t.TempDir()}}
		f.forecast.Before = foreseen(container.Header, nil)
		d.must(f.try(t.Context(), container.Header))
		if attempt := f.forecast.Attempts[0]; attempt.Status != want || !errors.Is(attempt.Err, class) {
			t.Errorf("%+v", attempt)
		}
		return f.forecast.Attempts[0].Text
	}
	text := look(boot.Failed, tpm2.ErrPolicy) // fault 41: nothing has been measured since it restarted
	if !regexp.MustCompile(`would be refused: PCRs \[7\] of bank sha256 give policy [0-9a-f]{64}, the key is sealed to [0-9a-f]{64}`).MatchString(text) {
		t.Errorf("nothing is said of the policies: %s", text)
	}
	s.Extend(7, "boot")
	look(boot.Attended, nil)
	s.Replace() // fault 43, which tokens of systemd up to 253 do not tell from moved PCRs
	look(boot.Failed, map[bool]error{true: tpm2.ErrSRKMismatch, false: tpm2.ErrPolicy}[d.systemdVersion() >= 254])
}
