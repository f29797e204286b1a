package health

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock is a time that only the test moves.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func advise(code Code, _ Reason, _ string) string { return "luksmediad fix " + string(code) }

// goodBoard returns a Board on which every condition holds.
func goodBoard(options Options) *Board {
	b := NewBoard(options)
	for _, code := range Codes() {
		b.Set(code, OK, "", "")
	}
	return b
}

func find(t *testing.T, b *Board, code Code) Condition {
	t.Helper()
	for _, c := range b.Snapshot() {
		if c.Code == code {
			return c
		}
	}
	t.Fatalf("no condition %q on the board", code)
	return Condition{}
}

func TestTableIsClosed(t *testing.T) {
	seen := map[Code]bool{}
	for _, d := range conditions {
		for _, on := range slices.Concat(d.dependsOn, d.follows) {
			if !seen[on] {
				t.Errorf("%s depends on %s, which is not before it", d.code, on)
			}
		}
		for _, reason := range d.degrades {
			if !slices.Contains(d.reasons, reason) {
				t.Errorf("%s degrades with %s, which it never has", d.code, reason)
			}
		}
		for _, reason := range d.unseen {
			if !slices.Contains(d.reasons, reason) || len(d.follows) == 0 {
				t.Errorf("%s sees nothing with %s, which it never has, or follows nothing", d.code, reason)
			}
		}
		if seen[d.code] || d.title == "" {
			t.Errorf("%q is there twice or has no title", d.code)
		}
		seen[d.code] = true
	}
}

// TestImpact is the truth table: what one failing condition costs while all others hold.
func TestImpact(t *testing.T) {
	tests := []struct {
		code           Code
		reason         Reason
		ready, healthy bool
		worst          Status
	}{
		{Container, "missing", false, false, Fail},
		{Header, ReasonPinMismatch, true, false, Fail}, // what is open stays usable; what is not fails Unlock
		{Header, ReasonCopyDamaged, true, true, Warn},  // fault 50
		{Header, ReasonKeyslotUnknown, true, true, Warn},
		{Header, ReasonBackupOld, true, true, Warn},
		{Unlock, "policy", false, false, Fail},
		{Filesystem, "damaged", false, false, Fail},
		{Mount, "busy", false, false, Fail},
		{Guard, "not_immutable", true, false, Fail},
		{Store, ReasonPlaintext, true, true, Warn},
		{Write, ReasonReadOnly, false, false, Fail},
		{Write, ReasonTimeout, false, false, Fail},
		{Write, ReasonEmergencyRO, false, false, Fail},
		{Write, ReasonFilesystemErrors, true, true, Warn},
		{Gate, "closed", false, false, Fail},
		{Ciphertext, ReasonPlaintext, true, false, Fail},
		{Ciphertext, ReasonNotMovedIn, true, true, Warn},
		{Thumbnail, ReasonNotOnVolume, true, false, Fail},
		{Thumbnail, ReasonTimeout, true, false, Fail},
		{Thumbnail, ReasonUnauthorized, true, false, Fail},
		{Thumbnail, ReasonSynapseUnreachable, true, true, Warn}, // fault 73
		{Thumbnail, ReasonPlaintextCopy, true, true, Warn},
		{Containers, ReasonContainerStale, true, false, Fail}, // fault 67
		{Space, ReasonLowSpace, true, true, Warn},             // fault 62
		{Space, ReasonNoSpace, true, false, Fail},
		{Keys, ReasonUnproven, true, true, Warn},
		{Protection, "key_same_disk", true, true, Warn},
		{Configuration, "config", true, true, Warn}, // fault 75
	}
	for _, test := range tests {
		t.Run(string(test.code)+"/"+string(test.reason), func(t *testing.T) {
			b := goodBoard(Options{})
			b.Set(test.code, Fail, test.reason, "")
			if b.Ready() != test.ready || b.Healthy() != test.healthy || b.Worst() != test.worst {
				t.Errorf("ready %t, healthy %t, worst %s; want %t, %t, %s",
					b.Ready(), b.Healthy(), b.Worst(), test.ready, test.healthy, test.worst)
			}
		})
	}
	for _, code := range Codes() {
		if !slices.ContainsFunc(tests, func(test struct {
			code           Code
			reason         Reason
			ready, healthy bool
			worst          Status
		}) bool {
			return test.code == code
		}) {
			t.Errorf("%s is missing from the truth table", code)
		}
	}
}

// What a Board before has told is shown as it was, and told again only if it changes; what the new one is without is left out.
func TestRestore(t *testing.T) {
	clock := newClock()
	before := goodBoard(Options{Now: clock.Now})
	before.report(Containers, outcome{Fail, ReasonContainerStale, "it sees another", "synapse"})
	before.Set(Write, Fail, ReasonFilesystemErrors, "3 errors")
	clock.advance(time.Minute)

	var told []Code
	b := NewBoard(Options{Now: clock.Now, Without: []Code{Thumbnail}, OnChange: func(c Condition, _ Status) { told = append(told, c.Code) }})
	b.Restore(before.Snapshot())
	want := slices.DeleteFunc(before.Snapshot(), func(c Condition) bool { return c.Code == Thumbnail })
	if diff := cmp.Diff(want, b.Snapshot()); diff != "" {
		t.Error(diff)
	}
	b.Set(Write, Fail, ReasonFilesystemErrors, "3 errors")
	b.Set(Mount, OK, "", "")
	b.Set(Containers, OK, "", "")
	if !slices.Equal(told, []Code{Containers}) {
		t.Errorf("told of %v", told)
	}
}

// Advice is asked for anew when another thing of the same kind fails.
func TestAdviceFollowsTheSubject(t *testing.T) {
	b := goodBoard(Options{Advise: func(_ Code, reason Reason, subject string) string {
		return string(reason) + " " + subject + " {subject}"
	}})
	for _, name := range []string{"media", "other"} {
		b.SetOf(Store, Warn, "plain", name, "")
		if c := find(t, b, Store); c.Next != "plain "+name+" "+name || c.Subject != name {
			t.Errorf("%s: %+v", name, c)
		}
	}
	b.Set(Store, Warn, "plain", "")
	if c := find(t, b, Store); c.Next != "plain  " {
		t.Errorf("about none: %q", c.Next)
	}
}

func TestUnknown(t *testing.T) {
	b := NewBoard(Options{})
	if b.Ready() || b.Healthy() {
		t.Error("a board without any report is ready or healthy")
	}
	b = goodBoard(Options{})
	b.Set(Thumbnail, Unknown, "", "")
	if !b.Ready() || b.Worst() != Warn {
		t.Errorf("thumbnail unknown: ready %t, worst %s; want true, degraded", b.Ready(), b.Worst())
	}
	b.Set(Write, Unknown, "", "")
	if b.Ready() {
		t.Error("ready before the first write probe")
	}
}

func TestCauseHidesDependents(t *testing.T) {
	b := goodBoard(Options{Advise: advise})
	b.Set(Unlock, Fail, "policy", "PCR 7 changed")
	b.Set(Mount, Fail, "not_mounted", "nothing is mounted")
	b.Set(Thumbnail, Fail, ReasonNotMounted, "")
	visible := []Code{}
	for _, c := range b.Snapshot() {
		if c.Status != OK && !c.Hidden() {
			visible = append(visible, c.Code)
		}
	}
	if !slices.Equal(visible, []Code{Unlock}) {
		t.Errorf("visible failures %v, want only unlock", visible)
	}
	for _, code := range []Code{Filesystem, Mount, Write, Gate, Ciphertext, Thumbnail} {
		if c := find(t, b, code); c.Cause != Unlock {
			t.Errorf("%s has cause %q, want unlock", code, c.Cause)
		}
	}
	if c := find(t, b, Guard); c.Hidden() {
		t.Error("guard is hidden by unlock")
	}
	if c := find(t, b, Unlock); c.Next != "luksmediad fix unlock" {
		t.Errorf("next is %q", c.Next)
	}
}

// What is open stays open below a header that has gone bad: only what fails follows from it.
func TestHeaderExplainsOnlyFailures(t *testing.T) {
	b := goodBoard(Options{})
	b.Set(Header, Fail, ReasonHeaderDamaged, "both copies are damaged")
	for _, code := range []Code{Unlock, Mount, Write, Gate, Keys} {
		if c := find(t, b, code); c.Hidden() {
			t.Errorf("%s is hidden by %s", code, c.Cause)
		}
	}
	b.Set(Unlock, Unknown, "", "")
	for _, code := range []Code{Unlock, Mount, Write, Gate} {
		if c := find(t, b, code); c.Cause != Header {
			t.Errorf("%s has cause %q, want header", code, c.Cause)
		}
	}
	var text strings.Builder
	if err := b.Report(Readyz).WriteText(&text, false); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text.String(), "[-]header failed: header_damaged: both copies are damaged (0s ago)\n") {
		t.Errorf("readyz does not name the cause:\n%s", &text)
	}
}

// A header that is destroyed is why the keys cannot be looked at; what was seen of them is said beside it.
func TestHeaderExplainsKeysThatWereNotSeen(t *testing.T) {
	for reason, hidden := range map[Reason]bool{ReasonUnreadable: true, ReasonIO: true, ReasonTimeout: true, ReasonDrift: false, ReasonUnproven: false} {
		b := goodBoard(Options{})
		b.Set(Keys, Fail, reason, "")
		if c := find(t, b, Keys); c.Hidden() || c.Status != Warn {
			t.Errorf("%s below a good header: %+v", reason, c)
		}
		b.Set(Header, Fail, ReasonHeaderDamaged, "both copies are damaged")
		if c := find(t, b, Keys); c.Hidden() != hidden || hidden && c.Cause != Header {
			t.Errorf("%s: hidden %v by %q", reason, c.Hidden(), c.Cause)
		}
		b.Set(Header, Fail, ReasonBackupOld, "") // only a warning
		if c := find(t, b, Keys); c.Hidden() {
			t.Errorf("%s is hidden by a warning", reason)
		}
	}
}

// Nothing is opened over a mountpoint that is not guarded: then the guard is the cause. That nobody has looked at it yet explains nothing.
func TestGuardExplainsAClosedContainer(t *testing.T) {
	b := NewBoard(Options{})
	b.Set(Container, Fail, "container_missing", "")
	if c := find(t, b, Container); c.Hidden() {
		t.Errorf("a missing container is hidden by %s", c.Cause)
	}
	b.Set(Container, Unknown, "", "")
	b.Set(Guard, Fail, "unguarded", "")
	for _, code := range []Code{Container, Unlock, Mount, Gate, Keys} {
		if c := find(t, b, code); c.Cause != Guard {
			t.Errorf("%s has cause %q, want guard", code, c.Cause)
		}
	}
	b = goodBoard(Options{})
	b.Set(Guard, Fail, "unguarded", "")
	if c := find(t, b, Mount); c.Hidden() {
		t.Error("what is mounted is hidden by the guard")
	}
}

// A warning does not hide: a damaged second header says nothing about a failing unlock.
func TestWarningHidesNothing(t *testing.T) {
	b := goodBoard(Options{})
	b.Set(Header, Warn, "backup_damaged", "")
	b.Set(Unlock, Fail, "policy", "")
	if c := find(t, b, Unlock); c.Hidden() {
		t.Errorf("unlock is hidden by %s", c.Cause)
	}
}

func TestStaleOutcomeFails(t *testing.T) {
	clock := newClock()
	b := goodBoard(Options{Now: clock.Now})
	b.Expect(Write, time.Minute)
	b.Expect(Store, time.Minute)
	clock.advance(3 * time.Minute)
	if !b.Ready() {
		t.Fatal("an outcome of three intervals is stale already")
	}
	clock.advance(time.Second)
	if c := find(t, b, Write); c.Status != Fail || c.Reason != ReasonStale || b.Ready() {
		t.Errorf("write is %s %q, ready %t; want failed stale, false", c.Status, c.Reason, b.Ready())
	}
	if c := find(t, b, Store); c.Status != Warn {
		t.Errorf("a stale condition that only degrades is %s", c.Status)
	}
	b.Set(Write, OK, "", "")
	if !b.Ready() {
		t.Error("not ready after a new outcome")
	}
}

// A probe that never had an outcome gets stale as well, from the moment it is expected.
func TestNeverReportedGetsStale(t *testing.T) {
	clock := newClock()
	b := NewBoard(Options{Now: clock.Now})
	clock.advance(time.Hour)
	b.Expect(Write, time.Minute)
	if c := find(t, b, Write); c.Status != Unknown {
		t.Errorf("write is %s at once", c.Status)
	}
	clock.advance(4 * time.Minute)
	if c := find(t, b, Write); c.Status != Fail || c.Reason != ReasonStale {
		t.Errorf("write is %s %q, want failed stale", c.Status, c.Reason)
	}
}

func TestOnChange(t *testing.T) {
	clock := newClock()
	var changes []string
	b := goodBoard(Options{Now: clock.Now, OnChange: func(c Condition, before Status) {
		changes = append(changes, string(c.Code)+" "+before.String()+" "+c.Status.String()+" "+string(c.Reason))
	}})
	changes = nil
	b.Set(Write, Unknown, "", "")
	b.Set(Write, OK, "", "first")
	clock.advance(time.Minute)
	b.Set(Write, OK, "", "second")
	if c := find(t, b, Write); !c.Since.Equal(clock.now.Add(-time.Minute)) || !c.Checked.Equal(clock.now) || c.Text != "second" {
		t.Errorf("since %s, checked %s, text %q", c.Since, c.Checked, c.Text)
	}
	b.Set(Write, Fail, ReasonIO, "")
	b.Set(Write, Fail, ReasonReadOnly, "")
	b.Set("nonsense", Fail, "", "")
	want := []string{"write ok unknown ", "write unknown ok ", "write ok failed io_error", "write failed failed read_only"}
	if !slices.Equal(changes, want) {
		t.Errorf("changes %q, want %q", changes, want)
	}
}

// What was found behind a cause is told when it is found again without it, if it still is so; what is over by then is never told.
func TestNewsBehindACause(t *testing.T) {
	var changes []string
	b := NewBoard(Options{OnChange: func(c Condition, before Status) {
		changes = append(changes, string(c.Code)+" "+before.String()+" "+c.Status.String()+" "+string(c.Reason))
	}})
	b.Set(Keys, Fail, ReasonOneWayIn, "")
	b.Set(Ciphertext, Fail, ReasonNotMounted, "")
	if len(changes) > 0 {
		t.Errorf("before the container is there: %q", changes)
	}
	for _, code := range []Code{Container, Header, Unlock, Filesystem, Mount} {
		b.Set(code, OK, "", "")
	}
	changes = nil
	b.Set(Keys, Fail, ReasonOneWayIn, "")
	b.Set(Ciphertext, OK, "", "")
	b.Set(Keys, Fail, ReasonOneWayIn, "")
	if want := []string{"keys unknown degraded one_way_in", "ciphertext unknown ok "}; !slices.Equal(changes, want) {
		t.Errorf("changes %q, want %q", changes, want)
	}
}

// An outcome gets stale without a report; it is told with the next one of any condition.
func TestStaleIsTold(t *testing.T) {
	clock := newClock()
	var changes []string
	b := goodBoard(Options{Now: clock.Now, OnChange: func(c Condition, _ Status) {
		changes = append(changes, string(c.Code)+" "+c.Status.String()+" "+string(c.Reason))
	}})
	changes = nil
	b.Expect(Ciphertext, time.Minute)
	clock.advance(4 * time.Minute)
	b.Set(Protection, OK, "", "")
	b.Set(Protection, OK, "", "")
	b.Set(Ciphertext, OK, "", "")
	if want := []string{"ciphertext failed stale", "ciphertext ok "}; !slices.Equal(changes, want) {
		t.Errorf("changes %q, want %q", changes, want)
	}
}

func TestWithout(t *testing.T) {
	b := NewBoard(Options{Without: []Code{Thumbnail}})
	b.Set(Thumbnail, Fail, ReasonRefused, "")
	for _, c := range b.Snapshot() {
		if c.Code == Thumbnail {
			t.Error("thumbnail is on the board")
		}
	}
}

func TestTextIsOneLine(t *testing.T) {
	b := NewBoard(Options{})
	b.Set(Thumbnail, Fail, ReasonRefused, "Synapse said\n[+]write ok\x1b[2J\t"+strings.Repeat("ä", 400))
	text := find(t, b, Thumbnail).Text
	if strings.ContainsAny(text, "\n\t\x1b") || len(text) > maxText+len("…") {
		t.Errorf("text is not one short line: %q", text)
	}
}
