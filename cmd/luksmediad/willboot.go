package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"luksmediad/internal/boot"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

func newWillBootCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "will-boot",
		Short: "Tell whether the next boot will open the volume by itself",
		Long: `Ask every configured key source for its key, in order and without asking a person, and prove each key on the header of
the container, as the next boot will; look whether record, container and header are as they should be, whether key file
and container will be there, and whether systemd will start luksmediad and hold back what needs it. Nothing is opened
or changed; the volume may be open. A PIN in a file that the TPM refuses is tried once, until the file changes.

What changes between now and then is not foreseen: an update of firmware, boot loader or kernel may change PCRs. Those
that the key is bound to are shown.

With --quiet only what is wrong is printed, and nothing at all if the answer is yes. With --json, one object.
Exit codes: 0 the first source opens the volume, 3 only a later one does or something else is wrong, 12 none does
without a person, 10 not set up, not started, or the container will not be there, 15 container or header refused.`,
		Example: `  luksmediad will-boot && reboot
  luksmediad will-boot --json | jq -r .source`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.willBoot(cmd.Context()) },
	}
}

func (a *app) willBoot(ctx context.Context) error {
	loaded, vol, err := a.load()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("cannot look ahead for volume %s: %w", vol.Name(), errNotRoot)
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	f := &foresight{config: loaded, volume: vol, machine: boot.Machine{Root: "/"}}
	if err := f.look(ctx); err != nil {
		return err
	}
	answer := f.answer()
	for i := range answer.Checks {
		answer.Checks[i].Next = a.asTyped(answer.Checks[i].Next)
	}
	if a.json {
		err = a.printJSON(answer)
	} else {
		err = printForecast(a.stdout, answer, a.quiet)
	}
	if err == nil && answer.ExitCode != exitDone {
		return exitError{answer.ExitCode}
	}
	return err
}

// foresight is what will-boot finds out.
type foresight struct {
	config   *config.Config
	volume   *volume.Volume
	machine  boot.Machine
	forecast boot.Forecast
	bindings []boot.Binding
}

// look fails only if it is interrupted or cannot see.
func (f *foresight) look(ctx context.Context) error {
	header, err := f.volume.Foresee(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f.forecast.Before = append([]boot.Check{{Name: "config", Status: boot.OK}}, foreseen(header, err)...)
	if err == nil {
		err = f.try(ctx, header)
		if err != nil {
			return err
		}
	}
	dependents := f.config.Units()
	f.forecast.After = []boot.Check{f.machine.Service(dependents)}
	if len(dependents) > 0 {
		f.forecast.After = append(f.forecast.After, f.machine.Gate(dependents))
	}
	return nil
}

// foreseen are the checks of the steps before a key is needed, up to the first that fails.
func foreseen(header *luks2.Header, err error) []boot.Check {
	var checks []boot.Check
	var failed *volume.StepError
	errors.As(err, &failed)
	for _, step := range []volume.Step{volume.StepRecord, volume.StepContainer, volume.StepHeader} {
		if failed != nil && failed.Step == step {
			return append(checks, boot.Check{Name: string(step), Status: boot.Failed, Text: err.Error(), Err: err})
		}
		checks = append(checks, boot.Check{Name: string(step), Status: boot.OK})
	}
	if header != nil && len(header.Damage) > 0 {
		last := &checks[len(checks)-1]
		last.Status, last.Text, last.Err = boot.Warning, header.Damage[0].Error(), volume.CheckDamage(header)
	}
	return checks
}

// try asks the key sources, and looks where what is read for it lies.
func (f *foresight) try(ctx context.Context, header *luks2.Header) error {
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	mapping, _ := unlock.FindMapping(f.volume.MappingName()) // none is open where there is no device mapper
	place := func(path string) error {
		if mapping == nil {
			return f.machine.Place(path, table, 0)
		}
		return f.machine.Place(path, table, mapping.Device)
	}
	f.placeContainer(place)
	sources := f.volume.SourcesAsking(boot.Nobody)
	rehearsal := boot.Rehearsal{Cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}}, Container: f.config.Volume.Container, Header: header}
	if f.forecast.Attempts, err = rehearsal.Try(ctx, sources); err != nil {
		return err
	}
	for i, source := range sources {
		attempt := &f.forecast.Attempts[i]
		if file, ok := source.(unlock.KeyFile); ok && attempt.Keyslot >= 0 {
			attempt.Place(place(file.Path))
		}
		if sealed, ok := source.(unlock.TPM2); ok && attempt.Keyslot < 0 {
			f.explain(ctx, attempt, sealed, header)
		}
	}
	if opener := f.forecast.Opener(); opener != nil {
		f.bindings = boot.Bindings(header, opener.Keyslot)
	}
	return nil
}

// placeContainer judges where a container in a file lies.
func (f *foresight) placeContainer(place func(string) error) {
	if info, err := os.Stat(f.config.Volume.Container); err != nil || !info.Mode().IsRegular() {
		return
	}
	i := slices.IndexFunc(f.forecast.Before, func(c boot.Check) bool { return c.Name == string(volume.StepContainer) })
	switch err := place(f.config.Volume.Container); {
	case errors.Is(err, boot.ErrGone):
		f.forecast.Before[i] = boot.Check{Name: string(volume.StepContainer), Status: boot.Failed, Text: err.Error(), Err: err}
	case err != nil:
		f.forecast.Before[i] = boot.Check{Name: string(volume.StepContainer), Status: boot.Warning, Text: err.Error(), Err: err}
	}
}

// explain says of a TPM that does not give the key which PCRs have moved. Where a person has a PIN for it, it says whether
// the PCRs would let them.
func (f *foresight) explain(ctx context.Context, attempt *boot.Attempt, tpm unlock.TPM2, header *luks2.Header) {
	recorded, err := f.volume.Enrolments()
	if err != nil {
		recorded = nil // it is only not known then what has moved
	}
	drifts, err := keys.Live{TPMs: []unlock.TPM2{tpm}, Enrolments: recorded}.Drifts(ctx, header)
	if err != nil {
		return
	}
	if err := keys.Refusal(drifts, true); err != nil && attempt.Status == boot.Attended {
		attempt.Status, attempt.Err, attempt.Text = boot.Failed, err, fmt.Sprintf("the right PIN would be refused: %v", err)
	}
	for _, drift := range drifts {
		for _, moved := range drift.Moved {
			attempt.Text += fmt.Sprintf("; PCR %d has moved from %x to %x", moved.PCR, moved.Then, moved.Now)
		}
	}
}

// forecastAnswer is what will-boot prints.
type forecastAnswer struct {
	Type     string        `json:"type"`
	Volume   string        `json:"volume"`
	Verdict  boot.Verdict  `json:"verdict"`
	Source   string        `json:"source,omitempty"`
	Keyslot  *int          `json:"keyslot,omitempty"`
	Checks   []checkLine   `json:"checks"`
	Bound    []bindingLine `json:"bound"`
	Text     string        `json:"text"`
	ExitCode int           `json:"exit_code"`
}

// checkLine is one thing that was looked at. Key sources come by their names, in their order.
type checkLine struct {
	Check   string      `json:"check"`
	Status  boot.Status `json:"status"`
	Keyslot *int        `json:"keyslot,omitempty"`
	Class   string      `json:"class,omitempty"`
	Text    string      `json:"text,omitempty"`
	Next    string      `json:"next,omitempty"`
}

// bindingLine is what the key that opens the volume depends on.
type bindingLine struct {
	Keyslot int    `json:"keyslot"`
	Bank    string `json:"bank,omitempty"`
	PCRs    []int  `json:"pcrs"`
}

func (f *foresight) answer() forecastAnswer {
	a := forecastAnswer{Type: "result", Volume: f.config.Volume.Name, Verdict: f.forecast.Verdict(), Checks: []checkLine{}, Bound: []bindingLine{}}
	for _, need := range f.forecast.Before {
		a.Checks = append(a.Checks, f.line(need))
	}
	for _, attempt := range f.forecast.Attempts {
		line := f.line(attempt.Check)
		if attempt.Keyslot >= 0 {
			line.Keyslot = &attempt.Keyslot
		}
		a.Checks = append(a.Checks, line)
	}
	for _, need := range f.forecast.After {
		a.Checks = append(a.Checks, f.line(need))
	}
	if opener := f.forecast.Opener(); opener != nil {
		a.Source, a.Keyslot = opener.Name, &opener.Keyslot
	}
	for _, b := range f.bindings {
		a.Bound = append(a.Bound, bindingLine{b.Keyslot, string(b.Bank), b.PCRs})
	}
	a.Text, a.ExitCode = f.verdict()
	return a
}

func (f *foresight) line(c boot.Check) checkLine {
	line := checkLine{Check: c.Name, Status: c.Status, Text: strings.ReplaceAll(c.Text, "\n", "; ")}
	if c.Err != nil {
		explained := explainAhead(f.config, c.Err)
		line.Class, line.Next = explained.Class, explained.Next
	}
	return line
}

func (f *foresight) verdict() (text string, exit int) {
	name, opener := f.config.Volume.Name, f.forecast.Opener()
	switch f.forecast.Verdict() {
	case boot.Opens:
		return fmt.Sprintf("the next boot opens %s by %s, keyslot %d", name, opener.Name, opener.Keyslot), exitDone
	case boot.OpensNevertheless:
		if opener != &f.forecast.Attempts[0] {
			return fmt.Sprintf("the next boot opens %s only by %s, keyslot %d", name, opener.Name, opener.Keyslot), exitDegraded
		}
		return fmt.Sprintf("the next boot opens %s by %s, keyslot %d, but not all is well", name, opener.Name, opener.Keyslot), exitDegraded
	case boot.NeedsPerson:
		return fmt.Sprintf("the next boot needs a person: no key source opens %s by itself", name), exitNoKey
	}
	explained := explainFor(f.config, f.forecast.Err())
	return fmt.Sprintf("the next boot does not open %s: %s", name, explained.Class), explained.ExitCode
}

// printForecast writes a line for each check, as healthz?verbose does, and the verdict.
func printForecast(w io.Writer, a forecastAnswer, quiet bool) error {
	var text strings.Builder
	marks := map[boot.Status]string{boot.OK: "[+]", boot.Warning: "[!]", boot.Failed: "[-]", boot.Attended: "[ ]"}
	for _, check := range a.Checks {
		if quiet && (a.ExitCode == exitDone || check.Status == boot.OK) {
			continue
		}
		parts := []string{string(check.Status)}
		for _, part := range []string{check.Class, check.Text} {
			if part != "" {
				parts = append(parts, printable(part))
			}
		}
		fmt.Fprintf(&text, "%s%s %s\n", marks[check.Status], check.Check, strings.Join(parts, ": "))
		if check.Next != "" {
			fmt.Fprintf(&text, "    type: %s\n", check.Next)
		}
	}
	for _, b := range a.Bound {
		if !quiet {
			fmt.Fprintf(&text, "[ ]keyslot %d is bound to %s: an update of firmware, boot loader or kernel that changes them is not foreseen\n",
				b.Keyslot, pcrList(tpm2.Bank(b.Bank), b.PCRs))
		}
	}
	if !quiet || a.ExitCode != exitDone {
		fmt.Fprintln(&text, a.Text)
	}
	_, err := io.WriteString(w, text.String())
	return err
}
