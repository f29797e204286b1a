package health

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	usageEvery = time.Hour          // at least between two samples
	usageSpan  = 7 * 24 * time.Hour // of the samples that are kept
	usageLeast = 12 * time.Hour     // of samples that tell a rate
	leastLeft  = 64 << 10           // bytes that a service needs at least to write anything
)

// Usage is how much of the volume was in use.
type Usage struct {
	Time  time.Time `json:"time"`
	Bytes int64     `json:"bytes"`
}

// A UsageKeeper keeps samples for the next process.
type UsageKeeper interface {
	LoadUsage() ([]Usage, error)
	SaveUsage([]Usage) error
}

// SpaceProbe tells whether there is room in the volume, and for how long.
type SpaceProbe struct {
	Dir    string           // a directory of the volume
	Device Device           // of the volume
	WarnAt float64          // the share in use, 0 to 1, from which on it is little
	Within time.Duration    // the time within which the volume must not become full
	Keeper UsageKeeper      // where samples are kept
	Now    func() time.Time // time.Now if nil
	// Forecast takes how long the volume will do: +Inf if it does not fill up, NaN while that is not known.
	Forecast func(seconds float64)
	// Found takes what there is and what is left, each time it was looked at.
	Found func(Room)

	samples []Usage
	loaded  bool
}

// Name returns Space.
func (p *SpaceProbe) Name() Code { return Space }

// Run looks. Its errors have the reasons of the table of conditions.
func (p *SpaceProbe) Run(context.Context) (string, error) {
	dir, err := openDirectory(p.Dir, p.Device)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(dir.file.Fd()), &stat); err != nil {
		return "", fmt.Errorf("cannot tell what is left of the volume: %w", err)
	}
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	room := roomOf(stat)
	if p.Found != nil {
		p.Found(room)
	}
	p.remember(Usage{now(), room.Used})
	left := timeLeft(append(slices.Clone(p.samples), Usage{now(), room.Used}), room.Left)
	if p.Forecast != nil {
		p.Forecast(left)
	}
	return p.judge(room, left)
}

// Room is what statfs(2) tells of a filesystem, as others than root see it.
type Room struct {
	Used, Left         int64  // bytes
	Inodes, InodesLeft uint64 // all 0 where a filesystem does not count them
}

func roomOf(stat unix.Statfs_t) Room {
	return Room{Used: int64(stat.Blocks-stat.Bfree) * stat.Bsize, Left: int64(stat.Bavail) * stat.Bsize,
		Inodes: stat.Files, InodesLeft: stat.Ffree}
}

func share(used, left float64) float64 {
	if used+left == 0 {
		return 0
	}
	return used / (used + left)
}

func (p *SpaceProbe) judge(r Room, left float64) (string, error) {
	bytes, inodes := share(float64(r.Used), float64(r.Left)), share(float64(r.Inodes-r.InodesLeft), float64(r.InodesLeft))
	text := fmt.Sprintf("%.0f %% of the space and %.0f %% of the inodes in use, %d MiB left%s", 100*bytes, 100*inodes, r.Left>>20, inWords(left))
	switch {
	// ext4 keeps 5 % for root (mke2fs(8), -m), so that the write probe may still succeed.
	case r.Left < leastLeft:
		return "", &Failure{ReasonNoSpace, fmt.Errorf("nobody but root can write: %s", text)}
	case r.Inodes > 0 && r.InodesLeft == 0:
		return "", &Failure{ReasonNoInodes, fmt.Errorf("no file can be made: %s", text)}
	case bytes >= p.WarnAt:
		return "", &Failure{ReasonLowSpace, fmt.Errorf("little space: %s", text)}
	case inodes >= p.WarnAt:
		return "", &Failure{ReasonLowInodes, fmt.Errorf("few inodes: %s", text)}
	case left < p.Within.Seconds():
		return "", &Failure{ReasonFullSoon, fmt.Errorf("not for long: %s", text)}
	}
	return text, nil
}

// inWords says for how long the volume will do, if that is worth a word.
func inWords(left float64) string {
	hours := left / time.Hour.Seconds()
	switch {
	case math.IsNaN(left), hours > 365*24:
		return ""
	case hours > 48:
		return fmt.Sprintf(", full in %.0f days as it goes", hours/24)
	}
	return fmt.Sprintf(", full in %.0f hours as it goes", hours)
}

// remember takes a sample every now and then. What is not of the last week, or not of the past, does not count.
func (p *SpaceProbe) remember(now Usage) {
	if !p.loaded {
		p.samples, _ = p.Keeper.LoadUsage() // without them the forecast begins anew
		p.loaded = true
	}
	p.samples = slices.DeleteFunc(p.samples, func(u Usage) bool {
		return u.Time.After(now.Time) || now.Time.Sub(u.Time) > usageSpan
	})
	if n := len(p.samples); n > 0 && now.Time.Sub(p.samples[n-1].Time) < usageEvery {
		return
	}
	p.samples = append(p.samples, now)
	_ = p.Keeper.SaveUsage(p.samples) // what is not kept is missing after the next start
}

// timeLeft is how many seconds the bytes left will do at the rate of the samples.
func timeLeft(samples []Usage, left int64) float64 {
	if samples[len(samples)-1].Time.Sub(samples[0].Time) < usageLeast {
		return math.NaN()
	}
	rate := medianRate(samples)
	if rate <= 0 {
		return math.Inf(1)
	}
	return float64(left) / rate
}

// medianRate is the median of the rates between any two samples, in bytes a second (the estimator of Theil and Sen). Unlike that of least
// squares it does not take for a rate that much was stored at once, as by a move or a restored backup.
func medianRate(samples []Usage) float64 {
	var rates []float64 // 14 000 of an hourly sample a week
	for i, later := range samples {
		for _, earlier := range samples[:i] {
			if seconds := later.Time.Sub(earlier.Time).Seconds(); seconds > 0 {
				rates = append(rates, float64(later.Bytes-earlier.Bytes)/seconds)
			}
		}
	}
	slices.Sort(rates)
	return (rates[(len(rates)-1)/2] + rates[len(rates)/2]) / 2
}
