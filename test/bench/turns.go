package main

import "time"

// turns times two sides by turns. The first turn warms the caches and does not count; what prepare and restore do, before and
// after each side, does not count either.
type turns struct {
	prepare, restore func() error
}

// compare fills a figure with the milliseconds of both sides.
func (t turns) compare(f *figure, runs int, ours, peer func() error) error {
	for turn := range runs + 1 {
		mine, err := t.time(ours)
		if err != nil {
			return err
		}
		theirs, err := t.time(peer)
		if err != nil {
			return err
		}
		if turn > 0 {
			f.ours, f.peer = append(f.ours, mine), append(f.peer, theirs)
		}
	}
	return nil
}

func (t turns) time(side func() error) (float64, error) {
	if t.prepare != nil {
		if err := t.prepare(); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	err := side()
	took := milliseconds(time.Since(began))
	if err == nil && t.restore != nil {
		err = t.restore()
	}
	return took, err
}
