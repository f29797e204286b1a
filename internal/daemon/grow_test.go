package daemon

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/mount"
)

// The volume grows by itself where that is configured, and what has grown is looked at anew. What fails is said once and left alone for a
// while; a lock that somebody holds is no failure.
func TestAutoGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.Config.Volume.AutoGrow = &config.AutoGrow{Below: 15, Step: config.GiB, Max: 100 * config.GiB}
		grows := func(grown *volume.Growth, err error) {
			s.grower.low.set(&volume.GrowOptions{To: 2 << 30})
			s.grower.grows.set(func(context.Context, volume.GrowOptions, volume.Observer) (*volume.Growth, error) {
				s.grower.low.set(nil)
				return grown, err
			})
		}
		s.start(t)
		s.after(5 * time.Second)
		s.grower.low.set(&volume.GrowOptions{})
		s.volume.holder.set(77)
		s.after(90 * time.Second)
		if said := append(s.record.having("grow_failed"), s.record.having("volume grow")...); len(said) != 0 {
			t.Errorf("busy is no failure: %s", said)
		}
		s.volume.holder.set(0)
		opens := len(s.record.having("volume open"))
		grows(&volume.Growth{From: 1 << 30, To: 2 << 30}, nil)
		s.after(time.Minute)
		if again := len(s.record.having("volume open")); again != opens+1 {
			t.Errorf("opened %d times after the growth", again-opens)
		}
		grows(nil, errBroken)
		s.after(time.Minute)
		grows(nil, errBroken)
		tried := len(s.record.having("volume grow"))
		s.after(50 * time.Minute)
		if said := s.record.having("grow_failed"); len(said) != 1 {
			t.Errorf("said %d times: %s", len(said), said)
		}
		if why := s.Stalled.Load(); why == nil || !errors.Is(*why, errBroken) {
			t.Error("the probe does not know")
		}
		if again := len(s.record.having("volume grow")); again != tried {
			t.Errorf("tried %d times more", again-tried)
		}
		s.after(15 * time.Minute)
		if again := len(s.record.having("volume grow")); again == tried {
			t.Error("not tried again")
		}
		s.after(time.Hour)
		if s.Stalled.Load() != nil {
			t.Error("the probe has not heard that it has room again")
		}
		grows(nil, mount.ErrSync)
		s.after(time.Minute)
		grows(nil, mount.ErrSync)
		tried = len(s.record.having("volume grow"))
		s.after(2 * time.Hour)
		if again := len(s.record.having("volume grow")); again != tried {
			t.Errorf("tried %d times after a sync that has failed", again-tried)
		}
		s.stopDaemon()
	})
}

// A volume that was full at a boot is not served, but it is there, and grows as soon as there is room below it.
func TestAutoGrowOfAFullVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.Config.Volume.AutoGrow = &config.AutoGrow{Below: 15, Step: config.GiB, Max: 100 * config.GiB}
		full := func(context.Context) error { return &health.Failure{Class: health.ReasonNoSpace, Err: errBroken} }
		s.write.runs.set(full)
		s.grower.low.set(&volume.GrowOptions{To: 2 << 30})
		s.grower.grows.set(func(context.Context, volume.GrowOptions, volume.Observer) (*volume.Growth, error) {
			s.grower.low.set(nil)
			s.write.runs.set(nil)
			return &volume.Growth{From: 1 << 30, To: 2 << 30}, nil
		})
		s.start(t)
		s.after(30 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseWaiting {
			t.Errorf("phase %s", phase)
		}
		s.after(90 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseServing || len(s.record.having("volume grow")) != 1 {
			t.Errorf("phase %s\n%s", phase, s.record)
		}
	})
}

// Without the setting nobody looks.
func TestNoAutoGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.grower.low.set(&volume.GrowOptions{To: 2 << 30})
		s.start(t)
		s.after(5 * time.Minute)
		if said := s.record.having("volume grow"); len(said) != 0 {
			t.Errorf("%s", said)
		}
		s.stopDaemon()
	})
}

// slowly grows in two steps, of six seconds each: the status is shown every five.
func slowly(ctx context.Context, options volume.GrowOptions, observer volume.Observer) (*volume.Growth, error) {
	for _, step := range []volume.Step{volume.StepProve, volume.StepAllocate} {
		observer.Step(step)
		select {
		case <-time.After(6 * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	observer.Progress(1<<30, options.To)
	return &volume.Growth{From: 1 << 30, To: options.To}, nil
}

// Who asks over the API is answered when it is done, sees meanwhile how far it is, and may go away.
func TestGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.grower.grows.set(slowly)
		s.start(t)
		s.after(5 * time.Second)
		opens := len(s.record.having("volume open"))
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := s.Grow(ctx, api.GrowRequest{ToBytes: 2 << 30})
			left <- err
		}()
		s.after(7 * time.Second)
		found, err := s.Operations(t.Context())
		if err != nil || len(found) != 1 || found[0].Action != api.OperationActionGrow || found[0].Step != string(volume.StepAllocate) {
			t.Errorf("%+v: %v", found, err)
		}
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who went away got %v", err)
		}
		s.after(10 * time.Second)
		s.requireOperations(t)
		if said := s.record.having("notify STATUS=serving; grow: " + string(volume.StepAllocate)); len(said) != 1 {
			t.Errorf("not shown:\n%s", s.record)
		}
		if said := s.record.having("notify STATUS="); !strings.HasSuffix(said[len(said)-1], "STATUS=serving") {
			t.Errorf("still shown: %s", said[len(said)-1])
		}
		if again := len(s.record.having("volume open")); again != opens+1 {
			t.Errorf("opened %d times after the growth", again-opens)
		}
		answer, err := s.Grow(t.Context(), api.GrowRequest{ToBytes: 2 << 30, DryRun: true})
		if err != nil || answer.Changed || answer.Text != "would grow volume media from 1GiB to 2GiB" {
			t.Errorf("%+v: %v", answer, err)
		}
		answer, err = s.Grow(t.Context(), api.GrowRequest{ToBytes: 2 << 30})
		if err != nil || !answer.Changed || answer.FromBytes != 1<<30 || answer.ToBytes != 2<<30 {
			t.Errorf("%+v: %v", answer, err)
		}
		s.volume.holder.set(77)
		if _, err := s.Grow(t.Context(), api.GrowRequest{}); !errors.Is(err, state.ErrBusy) {
			t.Errorf("beside somebody else: %v", err)
		}
		s.volume.holder.set(0)
		s.stopDaemon()
		if _, err := s.Grow(t.Context(), api.GrowRequest{}); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// What has grown has grown, also if the volume cannot be looked at then: who asks once more would have it grow twice.
func TestGrowThatIsNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.Config.Volume.AutoGrow = &config.AutoGrow{Below: 15, Step: config.GiB, Max: 100 * config.GiB}
		s.start(t)
		s.after(5 * time.Second)
		s.grower.low.set(&volume.GrowOptions{To: 2 << 30})
		s.grower.grows.set(func(context.Context, volume.GrowOptions, volume.Observer) (*volume.Growth, error) {
			s.grower.low.set(nil)
			return &volume.Growth{From: 1 << 30, To: 2 << 30}, nil
		})
		s.volume.failsAt(volume.StepHeader, errBroken)
		if answer, err := s.Grow(t.Context(), api.GrowRequest{ByBytes: 1 << 30}); err != nil || !answer.Changed {
			t.Errorf("%+v: %v", answer, err)
		}
		s.after(2 * time.Minute)
		if said := s.record.having("grow_failed"); len(said) != 0 {
			t.Errorf("%s", said)
		}
		s.stopDaemon()
	})
}

// What is locked while it grows is not opened by that.
func TestGrowDoesNotUnlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.grower.grows.set(func(context.Context, volume.GrowOptions, volume.Observer) (*volume.Growth, error) {
			return &volume.Growth{From: 1 << 30, To: 2 << 30}, nil
		})
		s.start(t)
		s.after(5 * time.Second)
		if _, err := s.Lock(t.Context(), api.LockRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Grow(t.Context(), api.GrowRequest{}); err != nil {
			t.Error(err)
		}
		s.after(5 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseLocked {
			t.Errorf("the volume is %s", phase)
		}
		s.stopDaemon()
	})
}

// A daemon that is about to end for the next one begins no growth: execve(2) would cut it short.
func TestGrowBesideReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.grower.grows.set(slowly)
		s.start(t)
		s.after(5 * time.Second)
		s.volume.holder.set(77)
		asked := make(chan error, 1)
		go func() {
			_, err := s.Grow(t.Context(), api.GrowRequest{ToBytes: 2 << 30})
			asked <- err
		}()
		s.after(time.Second)
		s.yielding.Store(true)
		s.volume.holder.set(0)
		if err := <-asked; !errors.Is(err, ErrHandover) {
			t.Errorf("answered %v", err)
		}
		if said := s.record.having("volume grow"); len(said) != 0 {
			t.Errorf("%s", said)
		}
		s.stopDaemon()
	})
}
