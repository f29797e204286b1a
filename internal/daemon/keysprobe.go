package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/boot"
	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// Keyring knows the keyslots and what was proven of them.
type Keyring interface {
	Record() (*volume.Record, error)
	Enrolments() ([]volume.Enrolled, error)
	Proofs(header *luks2.Header) ([]volume.KeyProof, error)
	NoteProof(header *luks2.Header, keyslot int, source string) error
	// TPMs are the configured TPMs; they ask nobody.
	TPMs() []unlock.TPM2
	// SourcesUnattended ask nobody and try no PIN.
	SourcesUnattended() []unlock.Source
}

// keysProbe tells whether there are two ways in that do not fail together, and that each was seen to open the container of late. It tries
// the key sources that need nobody, each once a day unless it fails, compares the TPM tokens with the PCRs, and reads what the TPM has
// counted towards its lockout. No PIN is ever tried.
type keysProbe struct {
	ring       Keyring
	container  string
	settings   config.KeysProbe
	sources    []config.KeySource
	cryptsetup unlock.Cryptsetup
	collector  *health.Collector
	explain    func(error) api.Explanation

	// tried is when each source was last tried with success; a failure is tried again by the next run.
	tried map[int]time.Time
}

const (
	// keysPace is the time between two looks at what costs nothing.
	keysPace = time.Hour
	// keysDeadline is for all sources together, each of which may wait for its device.
	keysDeadline = 3 * time.Minute
)

func (p *keysProbe) Name() health.Code { return health.Keys }

// Pace implements [health.Paced].
func (p *keysProbe) Pace() (interval, deadline time.Duration) {
	return min(keysPace, p.settings.Interval), keysDeadline
}

// finding is something that is wrong with the keys.
type finding struct {
	reason health.Reason
	text   string
}

func (p *keysProbe) Run(ctx context.Context) (string, error) {
	record, err := p.ring.Record()
	if err != nil {
		return "", reasoned(err, p.explain)
	}
	header, err := p.header(luks2.Inspect)
	if err != nil {
		return "", err
	}
	due := p.due(header)
	if len(due) > 0 {
		if header, err = p.header(luks2.Read); err != nil { // cryptsetup wants all of it
			return "", err
		}
	}
	findings := append(p.compareTPMs(ctx, header), p.try(ctx, header, due)...)
	if err := ctx.Err(); err != nil {
		return "", err
	}
	proofs, err := p.ring.Proofs(header)
	if err != nil {
		return "", reasoned(err, p.explain)
	}
	p.report(waysIn(header, record, proofs, ownSource))
	ways := waysIn(header, record, proofs, failsWith)
	findings = append(findings, judgeWays(ways, time.Now(), p.settings.ProvenWithin)...)
	if len(findings) == 0 {
		return describeWays(ways), nil
	}
	var texts []string
	for _, f := range findings {
		texts = append(texts, f.text)
	}
	return "", &health.Failure{Class: findings[0].reason, Err: errors.New(strings.Join(texts, "; "))}
}

// header is that on the disk.
func (p *keysProbe) header(read func(io.ReaderAt, int64) (*luks2.Header, error)) (*luks2.Header, error) {
	container, err := health.OpenRaw(p.container)
	if err != nil {
		return nil, err
	}
	defer container.Close()
	header, err := read(container, container.Bytes)
	if err == nil {
		err = header.Validate(container.Bytes)
	}
	return header, health.WithReason(err, health.ReasonUnreadable)
}

// compareTPMs finds drift and a lockout that is near, without unsealing anything.
func (p *keysProbe) compareTPMs(ctx context.Context, header *luks2.Header) []finding {
	if len(header.SlotsByToken(tpm2.TokenType)) == 0 {
		p.reportPolicies(nil)
		return nil
	}
	findings := p.compareTokens(ctx, header)
	seen := map[string]bool{}
	for _, source := range p.sources {
		if source.TPM2 == nil || seen[source.TPM2.Device] {
			continue
		}
		seen[source.TPM2.Device] = true
		near, err := p.readLockout(ctx, source.TPM2.Device)
		if err != nil && source.TPM2.WantsPIN() { // without a PIN, to try it says the same
			findings = append(findings, finding{health.ReasonKeyFailed, "tpm2: " + err.Error()})
		}
		findings = append(findings, near...)
	}
	return findings
}

func (p *keysProbe) compareTokens(ctx context.Context, header *luks2.Header) []finding {
	enrolments, err := p.ring.Enrolments()
	if err != nil {
		enrolments = nil // then it is only not known what has moved
	}
	drifts, err := keys.Live{TPMs: p.ring.TPMs(), Enrolments: enrolments}.Drifts(ctx, header)
	if err != nil {
		return nil // the context has ended
	}
	p.reportPolicies(drifts)
	pins := slices.ContainsFunc(p.sources, func(source config.KeySource) bool { return source.TPM2 != nil && source.TPM2.WantsPIN() })
	refused := keys.Refusal(drifts, pins)
	if refused == nil {
		return nil
	}
	return []finding{{health.ReasonDrift, fmt.Sprintf("the TPM would give no key: %v%s", refused, movedPCRs(drifts))}}
}

func (p *keysProbe) reportPolicies(drifts []keys.Drift) {
	matches := map[int]bool{}
	for _, drift := range drifts {
		if drift.Result != keys.NotComparable {
			matches[drift.Token.ID] = drift.Result == keys.Match
		}
	}
	p.collector.SetPolicies(matches)
}

func (p *keysProbe) readLockout(ctx context.Context, address string) ([]finding, error) {
	device, err := tpm2.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	failures, limit, err := device.Lockout(ctx)
	if err != nil {
		return nil, err
	}
	p.collector.SetLockout(failures, limit)
	if uint64(failures)*2 < uint64(limit) {
		return nil, nil
	}
	// Of a limit of none, too: that locks it for good.
	return []finding{{health.ReasonLockoutNear, fmt.Sprintf("the TPM has counted %d failures of the %d that lock it", failures, limit)}}, nil
}

// movedPCRs names the PCRs that are not as they were when the keys were sealed.
func movedPCRs(drifts []keys.Drift) string {
	var text string
	for _, drift := range drifts {
		for _, moved := range drift.Moved {
			text += fmt.Sprintf(", PCR %d has moved", moved.PCR)
		}
	}
	return text
}

// due are the places of the sources that were not proven for a day.
func (p *keysProbe) due(header *luks2.Header) (due []int) {
	if p.tried == nil {
		p.tried = p.triedBefore(header)
	}
	for i := range p.ring.SourcesUnattended() {
		last, ok := p.tried[i]
		age := time.Since(last) // negative where the clock was set back since another process has written it down
		if !ok || age < 0 || age >= p.settings.Interval {
			due = append(due, i)
		}
	}
	return due
}

// try proves what the sources that are due give.
func (p *keysProbe) try(ctx context.Context, header *luks2.Header, due []int) []finding {
	var findings []finding
	sources := p.ring.SourcesUnattended()
	rehearsal := boot.Rehearsal{Cryptsetup: p.cryptsetup, Container: p.container, Header: header}
	for _, i := range due {
		source := sources[i]
		delete(p.tried, i)
		attempt, err := rehearsal.TryOne(ctx, source)
		if err != nil {
			return findings // the context has ended
		}
		asked := attempt.Status != boot.Attended
		if asked && source.Name() == (unlock.TPM2{}).Name() {
			p.collector.SetUnsealed(attempt.Keyslot >= 0)
		}
		if attempt.Keyslot < 0 {
			if asked {
				findings = append(findings, finding{health.ReasonKeyFailed, attempt.Name + ": " + strings.ReplaceAll(attempt.Text, "\n", ", ")})
			}
			continue
		}
		if err := p.ring.NoteProof(header, attempt.Keyslot, source.Name()); err != nil {
			findings = append(findings, finding{health.ReasonError, err.Error()})
		}
		p.tried[i] = time.Now()
	}
	return findings
}

// triedBefore: what another process, or an opening, has proven need not be tried at once. A proof does not say which of several sources of
// its kind it was.
func (p *keysProbe) triedBefore(header *luks2.Header) map[int]time.Time {
	tried := map[int]time.Time{}
	proofs, err := p.ring.Proofs(header)
	if err != nil {
		return tried
	}
	sources := p.ring.SourcesUnattended()
	count := map[string]int{}
	for _, source := range sources {
		count[source.Name()]++
	}
	for i, source := range sources {
		for _, proof := range proofs {
			if count[source.Name()] == 1 && proof.Source == source.Name() && !proof.Time.After(time.Now()) {
				tried[i] = proof.Time
			}
		}
	}
	return tried
}

// ownSource is what opens a keyslot.
func ownSource(slot *keys.Slot) keys.Source { return slot.Source }

// failsWith is the source with which a keyslot fails: a key that clevis has sealed in the TPM is gone when the TPM's own are.
func failsWith(slot *keys.Slot) keys.Source {
	withoutTPM := func(token luks2.Token) bool {
		return token.Type == unlock.TokenClevis && !volume.ClevisNeedsTPM(token.Raw)
	}
	if slot.Source == keys.Clevis && !slices.ContainsFunc(slot.Tokens, withoutTPM) {
		return keys.TPM2
	}
	return slot.Source
}

// wayIn is all keyslots that a key of one kind of source opens: they fail together.
type wayIn struct {
	source   string
	keyslots []int
	proven   time.Time // zero if never
}

// waysIn are those of a header; by tells the source that a keyslot counts as.
func waysIn(header *luks2.Header, record *volume.Record, proofs []volume.KeyProof, by func(*keys.Slot) keys.Source) []wayIn {
	var ways []wayIn
	for _, slot := range keys.Slots(header, record.Keyslots) {
		if slot.Missing || slot.Unbound {
			continue
		}
		source, proven := string(by(slot)), time.Time{}
		for _, proof := range proofs {
			if proof.Keyslot != slot.Number {
				continue
			}
			if proven = proof.Time; !slot.Ours && len(slot.Tokens) == 0 {
				source = proof.Source // nothing else tells what opens it
			}
		}
		i := slices.IndexFunc(ways, func(w wayIn) bool { return w.source == source })
		if i < 0 {
			i, ways = len(ways), append(ways, wayIn{source: source})
		}
		ways[i].keyslots = append(ways[i].keyslots, slot.Number)
		if proven.After(ways[i].proven) {
			ways[i].proven = proven
		}
	}
	return ways
}

// judgeWays wants two, proven of late. A proof of the future is none: the clock was wrong.
func judgeWays(ways []wayIn, now time.Time, within time.Duration) []finding {
	if len(ways) < 2 {
		return []finding{{health.ReasonOneWayIn, fmt.Sprintf("%d way in, and nothing to fall back on: %s", len(ways), describeWays(ways))}}
	}
	proven := 0
	for _, way := range ways {
		if age := now.Sub(way.proven); !way.proven.IsZero() && age >= 0 && age <= within {
			proven++
		}
	}
	if proven < 2 {
		return []finding{{health.ReasonUnproven, fmt.Sprintf("of %d ways in %d was seen to open the container in the last %.0f days: %s",
			len(ways), proven, within.Hours()/24, describeWays(ways))}}
	}
	return nil
}

func describeWays(ways []wayIn) string {
	var texts []string
	for _, way := range ways {
		when := "never proven"
		if !way.proven.IsZero() {
			when = "proven " + way.proven.UTC().Format(time.DateOnly)
			if way.source == string(keys.Credential) {
				when += " (as decrypted at the last start)" // what systemd could decrypt now only the next one tells
			}
		}
		texts = append(texts, way.source+" "+when)
	}
	return strings.Join(texts, ", ")
}

// report turns the ways in into metrics.
func (p *keysProbe) report(ways []wayIn) {
	for _, source := range KeySources() {
		var found wayIn
		for _, way := range ways {
			if way.source == source {
				found = way
			}
		}
		p.collector.SetKey(source, found.proven)
	}
}

// KeySources are the kinds of key sources that can be told apart, a closed set for a metric's label.
func KeySources() []string {
	var words []string
	for _, source := range []keys.Source{keys.TPM2, keys.Recovery, keys.KeyFile, keys.Credential, keys.Command, keys.Passphrase, keys.Clevis,
		keys.FIDO2, keys.PKCS11, keys.Unknown} {
		words = append(words, string(source))
	}
	return words
}
