package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

const containerHelp = `Without --container it is the configured volume, whose record tells which keyslots luksmediad made. With it, any LUKS2
container, without configuration or root. Nothing is written to the container, also where its header is damaged.`

// containerFlags say which container, and which keys to offer.
type containerFlags struct {
	*app
	container  string
	tpm        string
	signature  string
	pinFile    string
	keyFile    string
	passphrase passphraseFlags
}

func (f *containerFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.container, "container", "", "`file` or block device to look at, instead of the configured volume")
	flags.StringVar(&f.tpm, "tpm2-device", "", "`TPM`: auto, a device node, or swtpm:path=SOCKET (default as configured, or auto)")
	flags.StringVar(&f.signature, "tpm2-signature", "", "`file` with signed PCR policies, as systemd-measure writes it")
	flags.StringVar(&f.pinFile, "pin-file", "", "read the PIN of TPM tokens from `file`")
	flags.StringVar(&f.keyFile, "keyfile", "", "offer the content of key `file`")
	f.passphrase.register(cmd)
}

// ignore takes flags that have no meaning for a command, so that all commands on a container can be called alike.
func (f *containerFlags) ignore(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		cmd.Flags().Lookup(name).Hidden = true
	}
}

// subject is what a command looks at.
type subject struct {
	*keys.Container
	// config, volume and record are nil for a container that is not the configured one.
	config *config.Config
	volume *volume.Volume
	record *volume.Record
}

// read opens what the flags name. It returns a subject together with an error if only the header is bad.
func (f *containerFlags) read() (*subject, error) {
	if f.container != "" {
		f.config = &config.Config{Volume: config.Volume{Container: f.container}} // all that advice can name
		container, err := keys.Read(f.container)
		return &subject{Container: container}, err
	}
	loaded, vol, err := f.load()
	if err != nil {
		return &subject{}, err
	}
	return readRecorded(loaded, vol)
}

// readRecorded opens the configured container.
func readRecorded(loaded *config.Config, vol *volume.Volume) (*subject, error) {
	record, err := vol.Record()
	if err != nil {
		return &subject{}, err
	}
	container, err := keys.Read(loaded.Volume.Container)
	return &subject{Container: container, config: loaded, volume: vol, record: record}, err
}

// readValid refuses a header that is not valid, and in place of the configured container another one.
func (f *containerFlags) readValid() (*subject, error) {
	s, err := f.read()
	if err == nil {
		err = s.check()
	}
	return s, err
}

func (s *subject) check() error {
	err := s.Header.Validate(s.Bytes)
	if err == nil && s.record != nil {
		err = s.volume.CheckPin(s.record, s.Header, s.Bytes)
	}
	if err != nil {
		return fmt.Errorf("cannot use container %s: %w", s.Path, err)
	}
	return nil
}

// slots marks what luksmediad made.
func (s *subject) slots() []*keys.Slot {
	if s.record == nil {
		return keys.Slots(s.Header, nil)
	}
	return keys.Slots(s.Header, s.record.Keyslots)
}

// next is the advice about an error; most of it is about the configured volume.
func (s *subject) next(err error) string {
	if s.config == nil || err == nil {
		return ""
	}
	return explainAhead(s.config, err).Next
}

// tpms are the configured TPMs, or the one that was named, or the machine's, with what was given or else is configured for
// tokens that ask for more than the TPM. The caller wipes pin.
func (f *containerFlags) tpms(s *subject) (tpms []unlock.TPM2, pin *secret.Key, err error) {
	if s.volume != nil {
		tpms = s.volume.TPMs()
	}
	if len(tpms) == 0 {
		tpms = []unlock.TPM2{{Device: "auto"}}
	}
	if f.tpm != "" {
		tpms = []unlock.TPM2{named(tpms, f.tpm)}
	}
	given, err := f.signatures()
	if err != nil {
		return nil, nil, err
	}
	if f.pinFile != "" {
		if pin, err = readSecretFile(f.pinFile, "PIN"); err != nil {
			return nil, nil, err
		}
	}
	for i := range tpms {
		if given != nil {
			tpms[i].Signatures = func() (*tpm2.Signatures, error) { return given, nil }
		}
		if pin != nil {
			tpms[i].PINs = unlock.Ask(func(context.Context) (*secret.Key, error) { return pin.Copy() })
		}
	}
	return tpms, pin, nil
}

// named is the TPM at an address: as it is configured, or else like the first one.
func named(tpms []unlock.TPM2, device string) unlock.TPM2 {
	if i := slices.IndexFunc(tpms, func(t unlock.TPM2) bool { return t.Device == device }); i >= 0 {
		return tpms[i]
	}
	like := tpms[0]
	like.Device = device
	return like
}

func (f *containerFlags) signatures() (*tpm2.Signatures, error) {
	if f.signature == "" {
		return nil, nil
	}
	found, err := unlock.ReadSignatures(f.signature)
	if found == nil && err == nil {
		err = fmt.Errorf("cannot read the PCR signatures in %s: %w", f.signature, fs.ErrNotExist)
	}
	return found, err
}

// readStart reads a file up to a size at which whoever takes the content refuses it.
func readStart(path string, size int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, size))
}

// sources are the offered keys: a passphrase, a key file, or else what is configured and gives its key by itself.
func (f *containerFlags) sources(ctx context.Context, s *subject) ([]unlock.Source, error) {
	var sources []unlock.Source
	passphrase, err := f.passphrase.read(ctx, f.app)
	if err != nil {
		return nil, err
	}
	if passphrase != nil {
		sources = append(sources, unlock.Passphrase{Key: passphrase})
	}
	if f.keyFile != "" {
		return append(sources, unlock.KeyFile{Path: f.keyFile}), nil
	}
	if s.config == nil {
		return sources, nil
	}
	for _, source := range s.config.Unlock {
		switch {
		case source.Keyfile != nil:
			sources = append(sources, unlock.KeyFile{Path: source.Keyfile.Path})
		case source.Credential != nil:
			sources = append(sources, unlock.Credential{ID: source.Credential.Name, Folders: volume.CredentialFolders()})
		case source.Command != nil:
			sources = append(sources, unlock.Program{Runner: command.Runner{}, Run: source.Command.Run, Timeout: source.Command.Timeout})
		}
	}
	return sources, nil
}

// clevis decrypts clevis tokens, for as long as is configured.
func (s *subject) clevis() unlock.Clevis {
	clevis := unlock.Clevis{Runner: command.Runner{}, Timeout: 30 * time.Second}
	if s.config != nil {
		for _, source := range s.config.Unlock {
			if source.Clevis != nil {
				clevis.Timeout = source.Clevis.Timeout
			}
		}
	}
	return clevis
}
