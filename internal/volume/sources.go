package volume

import (
	"context"
	"os"
	"time"

	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// Asker asks a person for a secret; message says for which. It gives up after patience, or never if that is 0.
type Asker func(ctx context.Context, message string, patience time.Duration) (*secret.Key, error)

// Sources are the configured key sources in their order. They ask by systemd's password agents.
func (v *Volume) Sources() []unlock.Source { return v.SourcesAsking(v.AskAgents) }

// SourcesAsking are the configured key sources in their order, with another way to ask.
func (v *Volume) SourcesAsking(ask Asker) []unlock.Source {
	sources := make([]unlock.Source, len(v.config.Unlock))
	for i, source := range v.config.Unlock {
		sources[i] = v.source(source, ask)
	}
	return sources
}

// TPMs are the configured TPMs in their order. They wait for nothing and ask nobody: a PIN that would be asked for is none.
func (v *Volume) TPMs() []unlock.TPM2 {
	var tpms []unlock.TPM2
	for _, source := range v.config.Unlock {
		if source.TPM2 == nil {
			continue
		}
		unattended := *source.TPM2
		unattended.Wait = 0
		if unattended.PIN == config.AskPIN {
			unattended.PIN = config.NoPIN
		}
		tpms = append(tpms, v.tpm2Source(&unattended, nil))
	}
	return tpms
}

// SourcesUnattended are those configured that need nobody and cost nothing: no person is asked, and no PIN is tried.
func (v *Volume) SourcesUnattended() []unlock.Source {
	var sources []unlock.Source
	for _, source := range v.config.Unlock {
		if source.Passphrase == nil && (source.TPM2 == nil || !source.TPM2.WantsPIN()) {
			sources = append(sources, v.source(source, nil))
		}
	}
	return sources
}

// SourcesByHand are what a person at a terminal may have when the configured sources have failed: the PIN of a TPM key,
// unless it was asked for already, and the recovery passphrase.
func (v *Volume) SourcesByHand(ask Asker) []unlock.Source {
	var sources []unlock.Source
	for _, source := range v.config.Unlock {
		if source.TPM2 == nil || source.TPM2.PIN == config.AskPIN {
			continue
		}
		asking := *source.TPM2
		asking.PIN, asking.Wait = config.AskPIN, 0
		sources = append(sources, v.tpm2Source(&asking, ask))
	}
	return append(sources, unlock.Prompt{Ask: func(ctx context.Context) (*secret.Key, error) {
		return ask(ctx, "recovery passphrase", 0)
	}})
}

// Patience is about how long the configured sources may wait for what is late, all together.
func (v *Volume) Patience() time.Duration {
	var patience time.Duration
	for _, source := range v.config.Unlock {
		patience += source.Patience()
	}
	return patience
}

func (v *Volume) source(source config.KeySource, ask Asker) unlock.Source {
	switch {
	case source.TPM2 != nil:
		return v.tpm2Source(source.TPM2, ask)
	case source.Keyfile != nil:
		return unlock.KeyFile{Path: source.Keyfile.Path, Wait: source.Keyfile.Wait}
	case source.Credential != nil:
		return credentialSource(source.Credential)
	case source.Clevis != nil:
		return unlock.Clevis{Runner: v.runner, Timeout: source.Clevis.Timeout}
	case source.Command != nil:
		return v.commandSource(source.Command)
	}
	return unlock.Prompt{Ask: func(ctx context.Context) (*secret.Key, error) {
		return ask(ctx, "Passphrase of volume "+v.Name(), source.Passphrase.Timeout)
	}}
}

func (v *Volume) tpm2Source(source *config.TPM2, ask Asker) unlock.TPM2 {
	made := unlock.TPM2{Device: source.Device, Wait: source.Wait}
	made.Signatures = func() (*tpm2.Signatures, error) { return Signatures(source) }
	if path := source.PINFile(); path != "" {
		made.PINs = v.pinFile(path)
	} else if source.PIN == config.AskPIN {
		made.PINs = unlock.Ask(func(ctx context.Context) (*secret.Key, error) {
			return ask(ctx, "TPM PIN of volume "+v.Name(), config.PINTimeout)
		})
	}
	return made
}

// Signatures reads the signed PCR policies of a source from where it is configured; nil if there are none.
func Signatures(source *config.TPM2) (*tpm2.Signatures, error) {
	if source.Signature != config.AutoSignature && source.Signature != "" {
		return unlock.ReadSignatures(source.Signature)
	}
	return unlock.ReadSignatures(unlock.SignatureFiles()...)
}

func credentialSource(source *config.Credential) unlock.Credential {
	return unlock.Credential{ID: source.Name, Folders: CredentialFolders()}
}

// CredentialFolders are where systemd puts the credentials of a service: the one that it names to the service itself,
// and where root finds those of the daemon as long as it runs (systemd.exec(5), "Credentials").
func CredentialFolders() []string {
	return []string{os.Getenv("CREDENTIALS_DIRECTORY"), "/run/credentials/luksmediad.service"}
}

func (v *Volume) commandSource(source *config.Command) unlock.Program {
	return unlock.Program{Runner: v.runner, Run: source.Run, Timeout: source.Timeout}
}

// QuestionID tells the questions about this volume from those of others.
func (v *Volume) QuestionID() string { return "luksmediad:" + v.Name() }

// AskAgents asks by systemd's password agents.
func (v *Volume) AskAgents(ctx context.Context, message string, patience time.Duration) (*secret.Key, error) {
	return unlock.Agents{Runner: v.runner, ID: v.QuestionID(), Timeout: patience}.Ask(ctx, message)
}

// find asks the sources for a key that opens a keyslot, and reports those that had none.
func (v *Volume) find(ctx context.Context, observer Observer, sources []unlock.Source, about unlock.ProofRequest) (*unlock.Way, error) {
	way, failed, err := unlock.Opener{Cryptsetup: v.cryptsetup, Sources: sources}.Find(ctx, about)
	reportAttempts(observer, failed)
	return way, err
}

func reportAttempts(observer Observer, failed []unlock.Attempt) {
	for _, attempt := range failed {
		observer.Attempt(attempt)
	}
}
