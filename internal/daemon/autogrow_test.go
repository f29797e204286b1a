package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/mount"
)

// The volume grows by itself where that is configured, and what has grown is looked at anew. What fails is said once and left alone for a
// while; a lock that somebody holds is no failure.
func TestAutoGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.Config.Volume.AutoGrow = &config.AutoGrow{Below: 15, Step: config.GiB, Max: 100 * config.GiB}
		grows := func(grown *volume.Growth, err error) {
			s.grower.grows.set(func() (*volume.Growth, error) {
				s.grower.grows.set(func() (*volume.Growth, error) { return nil, nil })
				return grown, err
			})
		}
		grows(nil, &state.BusyError{PID: 77})
		s.start(t)
		s.after(90 * time.Second)
		if said := s.record.having("grow_failed"); len(said) != 0 {
			t.Errorf("busy is no failure: %s", said)
		}
		opens := len(s.record.having("volume open"))
		grows(&volume.Growth{From: 1 << 30, To: 2 << 30}, nil)
		s.after(time.Minute)
		if again := len(s.record.having("volume open")); again != opens+1 {
			t.Errorf("opened %d times after the growth", again-opens)
		}
		grows(nil, errBroken)
		s.after(time.Minute)
		tried := len(s.record.having("volume grow"))
		s.after(50 * time.Minute)
		if said := s.record.having("grow_failed"); len(said) != 1 {
			t.Errorf("said %d times: %s", len(said), said)
		}
		if again := len(s.record.having("volume grow")); again != tried {
			t.Errorf("tried %d times more", again-tried)
		}
		s.after(15 * time.Minute)
		if again := len(s.record.having("volume grow")); again == tried {
			t.Error("not tried again")
		}
		grows(nil, mount.ErrSync)
		s.after(time.Minute)
		tried = len(s.record.having("volume grow"))
		s.after(2 * time.Hour)
		if again := len(s.record.having("volume grow")); again != tried {
			t.Errorf("tried %d times after a sync that has failed", again-tried)
		}
		s.stopDaemon()
	})
}

// Without the setting nobody looks.
func TestNoAutoGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.start(t)
		s.after(5 * time.Minute)
		if said := s.record.having("volume grow"); len(said) != 0 {
			t.Errorf("%s", said)
		}
		s.stopDaemon()
	})
}
