package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

func newKeyAddCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Give the container one more key",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("cannot run key add: tpm2, keyfile, recovery, passphrase or clevis?")}
		},
	}
	cmd.AddCommand(newKeyAddTPM2Command(a), newKeyAddKeyFileCommand(a), newKeyAddRecoveryCommand(a), newKeyAddPassphraseCommand(a),
		newKeyAddClevisCommand(a))
	return cmd
}

const addHelp = `The new keyslot is proven by what the next opening will do, recorded, and saved in a new backup of the header. What an
interrupted command has begun the next one takes back.

` + authorizeHelp

// keyAdd is what the commands that add a key have in common.
type keyAdd struct {
	*app
	passphrase passphraseFlags
	options    volume.AddOptions
	// untried is the key source that the configuration lacks to try the key, as it is written there; empty if it lacks none.
	untried string
	// policy is what a TPM key is bound to, in words.
	policy string
}

func (k *keyAdd) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&k.options.DryRun, "dry-run", false, "prove that it is possible, change nothing")
	k.passphrase.register(cmd)
}

// begin reads the configuration.
func (k *keyAdd) begin() (*config.Config, *volume.Volume, error) {
	if err := secret.Harden(); err != nil {
		return nil, nil, err
	}
	return k.loadForHeader()
}

func (k *keyAdd) add(ctx context.Context, vol *volume.Volume, wanted volume.Enrolment) error {
	progress := newProgress(k.app, vol.MappingName())
	defer progress.close()
	var added *volume.AddedKey
	err := k.authorized(ctx, vol, &k.passphrase, false, func(sources []unlock.Source) (err error) {
		k.options.Sources = sources
		added, err = vol.AddKey(ctx, wanted, k.options, progress)
		return err
	})
	if err != nil {
		return err
	}
	if !k.options.DryRun {
		lookAgain(ctx, k.holder(vol))
	}
	return k.answer(added)
}

// keyResult is the last line that a command prints with --json when it has changed the keyslots.
type keyResult struct {
	Type     string `json:"type"`
	Text     string `json:"text"`
	ExitCode int    `json:"exit_code"`
	Keyslot  int    `json:"keyslot"`
	Source   string `json:"source,omitempty"`
	Policy   string `json:"policy,omitempty"`
	Replaced []int  `json:"replaced,omitempty"`
	Changed  bool   `json:"changed"`
}

func (k *keyAdd) answer(added *volume.AddedKey) error {
	result := keyResult{Type: "result", Keyslot: added.Keyslot, Source: added.Source, Policy: k.policy, Replaced: added.Replaced,
		Changed: !added.Present && !k.options.DryRun}
	switch {
	case added.Present:
		result.Text = fmt.Sprintf("keyslot %d opens with this %s already", added.Keyslot, added.Source)
	case k.options.DryRun:
		result.Text = fmt.Sprintf("would add keyslot %d for %s", added.Keyslot, added.Source)
	default:
		result.Text = fmt.Sprintf("added keyslot %d for %s", added.Keyslot, added.Source)
	}
	if k.policy != "" {
		result.Text += " (" + k.policy + ")"
	}
	if len(added.Replaced) > 0 {
		result.Text += ", in place of " + keyslotList(added.Replaced)
	}
	if k.untried != "" {
		result.Text += "; no key source in " + k.configPath + " tries it: " + addSource(k.untried)
	}
	return k.succeedWith(result, result.Text)
}

// keyslotList names keyslots in a sentence.
func keyslotList(keyslots []int) string {
	numbers := make([]string, len(keyslots))
	for i, keyslot := range keyslots {
		numbers[i] = strconv.Itoa(keyslot)
	}
	if len(numbers) == 1 {
		return "keyslot " + numbers[0]
	}
	return "keyslots " + strings.Join(numbers, ", ")
}

// succeedWith prints an answer that has more to it than its text.
func (a *app) succeedWith(answer any, text string) error {
	if a.json {
		return a.printJSON(answer)
	}
	_, err := fmt.Fprintln(a.stdout, text)
	return err
}

type keyAddTPM2 struct {
	keyAdd
	device, pcrs, bank, pinFile string
	pin                         bool
}

func newKeyAddTPM2Command(a *app) *cobra.Command {
	return (&keyAddTPM2{keyAdd: keyAdd{app: a}}).command()
}

func (k *keyAddTPM2) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tpm2",
		Short: "Seal a new key in the TPM",
		Long: `Seal a new key in the TPM, in the token format of systemd 256 and later, under the policy that the PCRs have now. PCRs,
bank and PIN are those of the configuration if they are not given: with "pin: ask" the PIN is asked for, and a PIN file
is read.

With --replace the TPM keyslots of luksmediad's that the new one supersedes are removed once it is proven: those of the
same TPM with the same PCRs and PIN, and those whose key no configured TPM gives any more, after an update of the
firmware or with another TPM. --replace-keyslot names one. A PIN or PCR of theirs is only dropped with --weaker.

` + addHelp,
		Example: `  luksmediad key add tpm2 --replace
  luksmediad key add tpm2 --pcrs 7,14 --pin`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&k.device, "tpm2-device", "", "`TPM`: auto, a device node, or swtpm:path=SOCKET (default as configured, or auto)")
	flags.StringVar(&k.pcrs, "pcrs", "", "`PCRs` to bind to, such as 7,14; none if empty (default as configured, or none)")
	flags.StringVar(&k.bank, "bank", "", "PCR `bank`: sha1, sha256, sha384 or sha512 (default as configured, or sha256)")
	flags.BoolVar(&k.pin, "pin", false, "ask for a PIN, which unsealing needs too; =false: none (default as configured)")
	flags.StringVar(&k.pinFile, "pin-file", "", "read that PIN from `file`")
	flags.BoolVar(&k.options.Replace.Superseded, "replace", false, "remove the TPM keyslots of luksmediad's that the new one supersedes")
	flags.IntSliceVar(&k.options.Replace.Keyslots, "replace-keyslot", nil, "remove keyslot `N`, which luksmediad made for a TPM")
	flags.BoolVar(&k.options.Replace.Weaker, "weaker", false, "also if the new one lacks a PIN or PCR of one that is removed")
	cmd.MarkFlagsMutuallyExclusive("pin", "pin-file")
	k.register(cmd)
	return cmd
}

func (k *keyAddTPM2) run(cmd *cobra.Command) error {
	pcrs, err := parsePCRs(k.pcrs)
	if err != nil {
		return err
	}
	if err := checkBank(k.bank); err != nil {
		return err
	}
	loaded, vol, err := k.begin()
	if err != nil {
		return err
	}
	source := k.source(loaded)
	wanted := volume.EnrolTPM2{Device: source.Device}
	if wanted.SealOptions, err = k.sealOptions(cmd, source); err != nil {
		return err
	}
	defer wanted.PIN.Wipe()
	if cmd.Flags().Changed("pcrs") {
		wanted.PCRs = pcrs
	}
	if k.bank != "" {
		wanted.Bank = tpm2.Bank(k.bank)
	}
	k.policy = describePolicy(&tpm2.Token{PCRs: wanted.PCRs, Bank: wanted.Bank, PIN: wanted.PIN != nil})
	k.untried = k.lacking(cmd.Context(), loaded.Unlock, wanted)
	return k.add(cmd.Context(), vol, wanted)
}

// lacking is the source that would try the key, if none of those configured does.
func (k *keyAddTPM2) lacking(ctx context.Context, sources []config.KeySource, wanted volume.EnrolTPM2) string {
	device, pin := wanted.Device, config.AskPIN
	for _, source := range sources {
		if source.TPM2 == nil || !tpm2.SameTPM(source.TPM2.Device, wanted.Device) {
			continue
		}
		if triesPIN(ctx, source.TPM2, wanted.PIN) {
			return ""
		}
		device = source.TPM2.Device
	}
	switch {
	case wanted.PIN == nil:
		pin = config.NoPIN
	case strings.HasPrefix(k.pinFile, "/") && !strings.HasPrefix(k.pinFile, "/dev/"):
		pin = k.pinFile
	}
	return fmt.Sprintf("tpm2: {device: %s, pin: %s}", yamlWord(device), yamlWord(pin))
}

// triesPIN tells whether a source tries the keys with a PIN, nil for those without.
func triesPIN(ctx context.Context, source *config.TPM2, pin *secret.Key) bool {
	if pin == nil || source.PIN == config.AskPIN {
		return true
	}
	if source.PINFile() == "" {
		return false
	}
	held, err := (&unlock.PINFile{Path: source.PINFile()}).PIN(ctx)
	defer held.Wipe()
	return err == nil && bytes.Equal(held.Bytes(), pin.Bytes())
}

// yamlWord is a value as it is written between the braces of a mapping.
func yamlWord(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-:=", r)
	}) {
		return strconv.Quote(text)
	}
	return text
}

// source is the first configured TPM, or the first with the given address. One that is not configured is taken as the first.
func (k *keyAddTPM2) source(loaded *config.Config) config.TPM2 {
	chosen := config.TPM2{Device: "auto", PIN: config.NoPIN}
	for _, source := range slices.Backward(loaded.Unlock) {
		if source.TPM2 != nil {
			chosen = *source.TPM2
		}
	}
	for _, source := range slices.Backward(loaded.Unlock) {
		if source.TPM2 != nil && source.TPM2.Device == k.device {
			chosen = *source.TPM2
		}
	}
	if k.device != "" {
		chosen.Device = k.device
	}
	return chosen
}

// sealOptions are those of the source, with the PIN that was given instead.
func (k *keyAddTPM2) sealOptions(cmd *cobra.Command, source config.TPM2) (options tpm2.SealOptions, err error) {
	switch {
	case k.pin:
		source.PIN = config.AskPIN
	case k.pinFile != "" || cmd.Flags().Changed("pin"):
		source.PIN = config.NoPIN
	}
	options, err = volume.SealOptions(cmd.Context(), &source, k.askPIN)
	if k.pinFile != "" && err == nil {
		options.PIN, err = readSecretFile(k.pinFile, "PIN")
	}
	return options, err
}

func (k *keyAddTPM2) askPIN(ctx context.Context) (*secret.Key, error) {
	return k.askTwice(ctx, wantedSecret{"PIN", "--pin-file"})
}

// checkBank takes none, which leaves the configured one.
func checkBank(text string) error {
	if text == "" {
		return nil
	}
	if _, err := config.ParseBank(text); err != nil {
		return usageError{fmt.Errorf("cannot use --bank: %w", err)}
	}
	return nil
}

// parsePCRs takes numbers with commas between them, or with plus signs as systemd-cryptenroll does.
func parsePCRs(text string) ([]int, error) {
	pcrs := []int{}
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '+' }) {
		pcr, err := strconv.Atoi(field)
		if err != nil || pcr < 0 || pcr > 23 {
			return nil, usageError{fmt.Errorf("cannot use --pcrs %q: %q is not the number of a PCR, 0 to 23", text, field)}
		}
		if slices.Contains(pcrs, pcr) {
			return nil, usageError{fmt.Errorf("cannot use --pcrs %q: %d occurs twice", text, pcr)}
		}
		pcrs = append(pcrs, pcr)
	}
	return pcrs, nil
}

func newKeyAddKeyFileCommand(a *app) *cobra.Command {
	k := &keyAdd{app: a}
	var path string
	cmd := &cobra.Command{
		Use:   "keyfile",
		Short: "Take the content of a key file as a key",
		Long: `Take the content of a key file as a key. A file that is there is used as it is, else one is made: 32 random bytes,
mode 0400. A key file on the same disk as the container protects against nothing: keep it on another device. The command
says so and asks.

` + addHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			loaded, vol, err := k.begin()
			if err != nil {
				return err
			}
			if path, err = keyFilePath(loaded, path); err != nil {
				return err
			}
			if !slices.ContainsFunc(loaded.Unlock, func(source config.KeySource) bool { return source.Keyfile != nil && source.Keyfile.Path == path }) {
				k.untried = fmt.Sprintf("keyfile: {path: %s}", yamlWord(path))
			}
			if err := k.acceptFile(cmd.Context(), vol.ProtectionBy(path)); err != nil {
				return err
			}
			return k.add(cmd.Context(), vol, volume.EnrolKeyFile{Path: path})
		},
	}
	cmd.Flags().StringVar(&path, "path", "", "the key `file` (default the first one configured)")
	k.register(cmd)
	return cmd
}

// acceptFile asks as create does before a key is put where the container is.
func (k *keyAdd) acceptFile(ctx context.Context, planned volume.Protection) error {
	if planned.Level != volume.LevelNoneSameDisk {
		return nil
	}
	k.warnOf(planned)
	if k.options.DryRun {
		return nil
	}
	return k.confirm(ctx, "the key will lie on the disk of the container: add it nevertheless?")
}

func keyFilePath(loaded *config.Config, given string) (string, error) {
	if strings.HasPrefix(given, "/") {
		return given, nil
	}
	if given != "" {
		return "", usageError{fmt.Errorf("cannot use --path %q: it is not absolute", given)}
	}
	for _, source := range loaded.Unlock {
		if source.Keyfile != nil {
			return source.Keyfile.Path, nil
		}
	}
	return "", usageError{errors.New("cannot tell which key file: none is configured; say --path")}
}

func newKeyAddRecoveryCommand(a *app) *cobra.Command {
	k := &keyAdd{app: a}
	cmd := &cobra.Command{
		Use:   "recovery",
		Short: "Generate one more recovery key",
		Long: `Generate a recovery key of 256 random bits and print it once on standard output. Write it down where this machine is
not. Other recovery keys stay valid until they are removed.

` + addHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, vol, err := k.begin()
			if err != nil {
				return err
			}
			if !k.options.DryRun {
				if err := k.confirm(cmd.Context(), "print a new recovery key here, once?"); err != nil {
					return err
				}
			}
			return k.add(cmd.Context(), vol, volume.EnrolRecovery{Deliver: k.printRecoveryKey})
		},
	}
	k.register(cmd)
	return cmd
}

func newKeyAddPassphraseCommand(a *app) *cobra.Command {
	k := &keyAdd{app: a}
	var file string
	cmd := &cobra.Command{
		Use:   "passphrase",
		Short: "Take a passphrase as a key",
		Long: `Take a passphrase that a person has chosen, from --new-passphrase-file or typed twice. Its keyslot is made slow to try
(Argon2id).

` + addHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, vol, err := k.begin()
			if err != nil {
				return err
			}
			key, err := k.readNewPassphrase(cmd.Context(), file)
			if err != nil {
				return err
			}
			defer key.Wipe()
			return k.add(cmd.Context(), vol, volume.EnrolPassphrase{Key: key})
		},
	}
	cmd.Flags().StringVar(&file, "new-passphrase-file", "", "read the new passphrase from `file`, - is standard input")
	k.register(cmd)
	return cmd
}

func (k *keyAdd) readNewPassphrase(ctx context.Context, file string) (*secret.Key, error) {
	flags := passphraseFlags{file: file}
	if !flags.given() || flags.typed(k.app) {
		return typable(k.askTwice(ctx, wantedSecret{"passphrase", "--new-passphrase-file"}))
	}
	if file == "-" && k.passphrase.file == "-" {
		return nil, usageError{errors.New("cannot read two passphrases from standard input")}
	}
	return typable(flags.read(ctx, k.app))
}

func newKeyAddClevisCommand(a *app) *cobra.Command {
	k := &keyAdd{app: a}
	cmd := &cobra.Command{
		Use:   "clevis PIN CONFIG",
		Short: "Bind a new key to a tang server or another clevis pin",
		Long: `Bind a new key to a pin of clevis, by the installed clevis tools: tang, sss, tpm2. CONFIG is the pin's configuration
in JSON. The token is that of "clevis luks bind"; "clevis luks unlock", "list" and "unbind" accept it.

Without "thp" or "adv" in the configuration of a tang server the keys that it advertises now are trusted; that is asked
for, or answered by --yes.

` + addHelp,
		Example: `  luksmediad key add clevis tang '{"url":"http://tang.example.org","thp":"x3nS…"}'`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			loaded, vol, err := k.begin()
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(loaded.Unlock, func(source config.KeySource) bool { return source.Clevis != nil }) {
				k.untried = "clevis: {}"
			}
			wanted := volume.EnrolClevis{Pin: args[0], Config: args[1]}
			if wanted.Trust, err = k.trust(cmd.Context(), wanted); err != nil {
				return err
			}
			return k.add(cmd.Context(), vol, wanted)
		},
	}
	k.register(cmd)
	return cmd
}

func (k *keyAdd) trust(ctx context.Context, wanted volume.EnrolClevis) (bool, error) {
	needs, mixed := volume.NeedsTrust(wanted.Pin, wanted.Config)
	switch {
	case mixed:
		return false, usageError{errors.New(`cannot trust one tang server unseen and hold another to its "thp": give all of them one`)}
	case !needs, k.options.DryRun:
		return false, nil
	}
	return true, k.confirm(ctx, "trust the keys that the tang server advertises now?")
}
