package daemon

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// protection is the condition as /healthz shows it.
func (s *site) protection(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(s.conditions(t)) {
		if strings.Contains(line, "]protection ") {
			return strings.TrimSuffix(line, "\n")
		}
	}
	t.Fatal("no condition protection")
	return ""
}

// Each level has its condition and its series of the metric.
func TestProtectionLevels(t *testing.T) {
	for _, level := range volume.Levels() {
		want := "[+]protection ok: because"
		switch level {
		case volume.LevelNoneSameDisk:
			want = "[!]protection degraded: key_same_disk: because"
		case volume.LevelUnknown:
			want = "[!]protection degraded: protection_unknown: because"
		}
		synctest.Test(t, func(t *testing.T) {
			s := newSite()
			s.volume.gives(opened())
			s.keys.found.set(func() volume.Protection { return volume.Protection{Level: level, Text: "because"} })
			s.start(t)
			if got := s.protection(t); got != want {
				t.Errorf("%s: got %q, want %q", level, got, want)
			}
			if series := `luksmediad_protection{level="` + string(level) + `"} 1`; !strings.Contains(s.metrics(t), series) {
				t.Errorf("no %s in\n%s", series, s.metrics(t))
			}
			if series := strings.Count(s.metrics(t), `luksmediad_protection{`); series != len(volume.Levels()) {
				t.Errorf("%s: %d series", level, series)
			}
		})
	}
}

// The level is looked for again every interval, whether the volume is open or not, and only another one is news.
func TestProtectionChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepUnlock, errBroken)
		s.start(t)
		s.after(150 * time.Second)
		s.keys.found.set(func() volume.Protection {
			return volume.Protection{Level: volume.LevelNoneSameDisk, Source: "keyfile", Text: "beside it"}
		})
		s.after(2 * time.Minute)
		want := []string{"  0.0 event protection_changed {LEVEL snapshot} {SOURCE tpm2} {TEXT sealed}",
			"180.0 event protection_changed {LEVEL none_same_disk} {SOURCE keyfile} {TEXT beside it}"}
		if diff := cmp.Diff(want, s.record.having("event protection_changed")); diff != "" {
			t.Error(diff)
		}
	})
}

// A look that hangs with a disk holds up nothing, is not begun twice, and is believed when it ends.
func TestProtectionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.gives(opened())
		looks, end := 0, make(chan struct{})
		s.keys.found.set(func() volume.Protection {
			looks++
			<-end
			return sealed()
		})
		s.start(t)
		if len(s.record.having("notify READY=1")) != 1 {
			t.Error("the opening waited")
		}
		s.after(5 * time.Minute)
		if got := s.protection(t); !strings.HasPrefix(got, "[!]protection degraded: protection_unknown: ") || looks != 1 {
			t.Errorf("after %d looks: %s", looks, got)
		}
		close(end)
		synctest.Wait()
		if got := s.protection(t); got != "[+]protection ok: sealed" {
			t.Errorf("at the end: %s", got)
		}
		if !s.Board.Ready() || s.Board.Worst() != health.OK {
			t.Errorf("ready %t, worst %s", s.Board.Ready(), s.Board.Worst())
		}
	})
}
