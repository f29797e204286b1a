package health

import (
	"errors"
	"math"
	"testing"
	"time"
)

// kept are the samples that are kept.
type kept struct {
	samples []Usage
	saves   int
	err     error
}

func (k *kept) LoadUsage() ([]Usage, error) { return k.samples, k.err }

func (k *kept) SaveUsage(samples []Usage) error {
	k.samples, k.saves = append([]Usage{}, samples...), k.saves+1
	return k.err
}

func TestSpaceProbe(t *testing.T) {
	dir, clock, keeper := t.TempDir(), newClock(), &kept{}
	var seconds float64
	var found Room
	probe := &SpaceProbe{Dir: dir, Device: constant(deviceOf(t, dir)), WarnAt: 1.1, Keeper: keeper, Now: clock.Now,
		Forecast: func(s float64) { seconds = s }, Found: func(r Room) { found = r }}
	for range 2 * 24 * 60 { // ten days, every five minutes
		if _, err := probe.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		clock.advance(5 * time.Minute)
	}
	if n := len(keeper.samples); n > 7*24+1 || n < 7*24-1 || keeper.saves > 10*24+1 {
		t.Errorf("%d samples are kept, %d saves", n, keeper.saves)
	}
	if math.IsNaN(seconds) {
		t.Error("no forecast after ten days")
	}
	if found.Used <= 0 || found.Left <= 0 {
		t.Errorf("what was found is told as %+v", found)
	}
	// A new process goes on with them, fault 71: unless the clock was wrong.
	clock.now = clock.now.Add(-20 * 365 * 24 * time.Hour)
	again := &SpaceProbe{Dir: dir, Device: probe.Device, WarnAt: 1.1, Keeper: keeper, Now: clock.Now}
	if _, err := again.Run(t.Context()); err != nil || len(keeper.samples) != 1 {
		t.Errorf("%d samples of the future, %v", len(keeper.samples), err)
	}
	keeper.err = errors.New("disk full")
	if _, err := again.Run(t.Context()); err != nil {
		t.Error(err)
	}
	again.WarnAt = 0
	_, err := again.Run(t.Context())
	requireReason(t, err, ReasonLowSpace)
	again.Device = constant(deviceOf(t, dir) + 1)
	_, err = again.Run(t.Context())
	requireReason(t, err, ReasonNotMounted)
}

func TestSpaceJudgement(t *testing.T) {
	probe := &SpaceProbe{WarnAt: 0.9, Within: 72 * time.Hour}
	hours := func(n float64) float64 { return n * 3600 }
	tests := map[string]struct {
		room Room
		left float64
		want Reason
	}{
		"much":                  {Room{10, 90 << 20, 100, 90}, math.NaN(), ""},
		"nothing":               {Room{90 << 20, 4096, 100, 90}, math.NaN(), ReasonNoSpace},
		"no inode":              {Room{10 << 20, 90 << 20, 100, 0}, math.NaN(), ReasonNoInodes},
		"no inodes to speak of": {Room{10 << 20, 90 << 20, 0, 0}, math.Inf(1), ""},
		"little":                {Room{90 << 20, 10 << 20, 100, 90}, math.NaN(), ReasonLowSpace},
		"few inodes":            {Room{10 << 20, 90 << 20, 100, 10}, math.NaN(), ReasonLowInodes},
		"not for long":          {Room{50 << 20, 50 << 20, 100, 90}, hours(71), ReasonFullSoon},
		"for long":              {Room{50 << 20, 50 << 20, 100, 90}, hours(73), ""},
	}
	for name, test := range tests {
		text, err := probe.judge(test.room, test.left)
		if test.want == "" && (err != nil || text == "") {
			t.Errorf("%s: %q, %v", name, text, err)
		} else if test.want != "" && ReasonOf(err) != test.want {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

func TestTimeLeft(t *testing.T) {
	start := newClock().now
	hourly := func(n int, bytes func(hour int) int64) []Usage {
		var samples []Usage
		for hour := range n {
			samples = append(samples, Usage{start.Add(time.Duration(hour) * time.Hour), bytes(hour)})
		}
		return samples
	}
	steady := hourly(168, func(hour int) int64 { return 1<<30 + int64(hour)<<20 })
	if left := timeLeft(steady, 100<<20) / 3600; math.Abs(left-100) > 0.01 {
		t.Errorf("1 MiB an hour, 100 MiB left: %.3f hours", left)
	}
	uneven := hourly(168, func(hour int) int64 { return int64(hour/24) << 30 }) // once a day
	if left := timeLeft(uneven, 10<<30) / 3600 / 24; left < 9 || left > 11 {
		t.Errorf("1 GiB a day, 10 GiB left: %.1f days", left)
	}
	if left := timeLeft(hourly(20, func(hour int) int64 { return -int64(hour) }), 1); !math.IsInf(left, 1) {
		t.Errorf("it gets less: %v", left)
	}
	if left := timeLeft(hourly(12, func(hour int) int64 { return int64(hour) << 30 }), 1); !math.IsNaN(left) {
		t.Errorf("known after eleven hours: %v", left)
	}
	if left := timeLeft([]Usage{{start, 1}}, 1); !math.IsNaN(left) {
		t.Errorf("known after one sample: %v", left)
	}
}

// Files that are moved into an empty volume within its first hour are no rate at which it fills up, at no time of the week after; what comes later is
// one, also beside them.
func TestTimeLeftAfterMuchAtOnce(t *testing.T) {
	start := newClock().now
	const all, moved, within = 50 << 30, 40 << 30, 3 * 24 * 3600
	for name, test := range map[string]struct {
		perHour int64
		soon    bool
	}{
		"nothing more":       {0, false},
		"a little more":      {20 << 20, false}, // three weeks
		"it really fills up": {200 << 20, true}, // two days
	} {
		samples := []Usage{{start, 1 << 20}}
		for hour := int64(1); hour <= 40; hour++ {
			used := moved + hour*test.perHour
			samples = append(samples, Usage{start.Add(time.Duration(hour) * time.Hour), used})
			left := timeLeft(samples, all-used)
			if known := hour >= 12; known == math.IsNaN(left) || known && test.soon != (left < within) {
				t.Errorf("%s: after %d hours: %.1f hours left", name, hour, left/3600)
			}
		}
	}
}
