package volume

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

func withSources(sources ...config.KeySource) *Volume {
	return New(&config.Config{Volume: config.Volume{Name: "media"}, Unlock: sources}, Paths{}, command.Runner{})
}

func everySource() []config.KeySource {
	return []config.KeySource{
		{TPM2: &config.TPM2{Device: "auto", PIN: config.AskPIN, Wait: 30 * time.Second}},
		{Keyfile: &config.Keyfile{Path: "/key", Wait: 5 * time.Second}},
		{Credential: &config.Credential{Name: "name"}},
		{Clevis: &config.Clevis{Timeout: 20 * time.Second}},
		{Command: &config.Command{Run: []string{"/program", "argument"}, Timeout: 10 * time.Second}},
		{Passphrase: &config.Passphrase{Timeout: time.Minute}},
	}
}

// Every configured source is asked, in its order, and the names are those of the configuration.
func TestSources(t *testing.T) {
	vol := withSources(everySource()...)
	for i, source := range vol.Sources() {
		if want := everySource()[i].Kind(); source.Name() != want {
			t.Errorf("source %d is %s, not %s", i, source.Name(), want)
		}
	}
	if want := (30 + 60 + 5 + 20 + 10 + 60) * time.Second; vol.Patience() != want {
		t.Errorf("patience is %v, want %v", vol.Patience(), want)
	}
}

// What a configuration leaves out, because code has made it, is no PIN and no signature of a path of its own.
func TestSourceOfBareSettings(t *testing.T) {
	vol := withSources(config.KeySource{TPM2: &config.TPM2{Device: "auto"}})
	if source := vol.Sources()[0].(unlock.TPM2); source.PINs != nil || source.Wait != 0 {
		t.Errorf("got %+v", source)
	}
}

func TestPINFileKeepsItsMemory(t *testing.T) {
	vol := withSources(config.KeySource{TPM2: &config.TPM2{Device: "auto", PIN: "/root/pin"}})
	if file, ok := vol.Sources()[0].(unlock.TPM2).PINs.(*unlock.PINFile); !ok || file.Path != "/root/pin" {
		t.Errorf("got %+v", vol.Sources()[0])
	}
}

// A person at a terminal is asked for what the configured sources have not asked for.
func TestSourcesByHand(t *testing.T) {
	errAsked := errors.New("asked")
	var messages []string
	ask := func(_ context.Context, message string, _ time.Duration) (*secret.Key, error) {
		messages = append(messages, message)
		return nil, errAsked
	}
	for pin, want := range map[string][]string{
		config.NoPIN:  {"TPM PIN of volume media", "recovery passphrase"},
		"/root/pin":   {"TPM PIN of volume media", "recovery passphrase"},
		config.AskPIN: {"recovery passphrase"},
	} {
		messages = nil
		vol := withSources(config.KeySource{TPM2: &config.TPM2{Device: "auto", PIN: pin, Wait: time.Minute}}, config.KeySource{Clevis: &config.Clevis{}})
		for _, source := range vol.SourcesByHand(ask) {
			var err error
			switch source := source.(type) {
			case unlock.TPM2:
				_, err = source.PINs.PIN(t.Context())
				if source.Wait != 0 {
					t.Errorf("waits %v for a TPM once more", source.Wait)
				}
			case unlock.Prompt:
				_, err = source.Ask(t.Context())
			}
			if !errors.Is(err, errAsked) {
				t.Errorf("%s does not ask: %v", source.Name(), err)
			}
		}
		if !slices.Equal(messages, want) {
			t.Errorf("pin %s: asked %q, want %q", pin, messages, want)
		}
	}
}
