package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"luksmediad/pkg/unlock/luks2"
)

// faults 32, 33 and 36: a growth that is asked for once more goes where the interrupted one went, however far that came.
func TestGrowTarget(t *testing.T) {
	const mib = 1 << 20
	interrupted := &growth{From: 100 * mib, To: 200 * mib}
	for name, test := range map[string]struct {
		bytes       int64
		interrupted *growth
		options     GrowOptions
		want        int64 // 0: refused
	}{
		"to a size":                       {100 * mib, nil, GrowOptions{To: 200 * mib}, 200 * mib},
		"by a size":                       {100 * mib, nil, GrowOptions{By: 100 * mib}, 200 * mib},
		"neither":                         {100 * mib, nil, GrowOptions{}, 0},
		"less":                            {100 * mib, nil, GrowOptions{To: 50 * mib}, 0},
		"by, interrupted at its begin":    {100 * mib, interrupted, GrowOptions{By: 100 * mib}, 200 * mib},
		"by, interrupted on its way":      {150 * mib, interrupted, GrowOptions{By: 100 * mib}, 200 * mib},
		"by, interrupted late":            {200 * mib, interrupted, GrowOptions{By: 100 * mib}, 200 * mib},
		"by more, interrupted":            {200 * mib, interrupted, GrowOptions{By: 150 * mib}, 250 * mib},
		"neither, interrupted":            {150 * mib, interrupted, GrowOptions{}, 200 * mib},
		"neither, interrupted late":       {200 * mib, interrupted, GrowOptions{}, 200 * mib},
		"by less than there is":           {200 * mib, interrupted, GrowOptions{By: 50 * mib}, 0},
		"to a size, interrupted":          {150 * mib, interrupted, GrowOptions{To: 300 * mib}, 300 * mib},
		"what was interrupted was none":   {100 * mib, &growth{From: 100 * mib, To: 100 * mib}, GrowOptions{}, 100 * mib},
		"by less than a sector, and none": {100 * mib, nil, GrowOptions{By: 100}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := &growing{Volume: testVolume(t, "/srv/volume.luks"), options: test.options, interrupted: test.interrupted,
				container: &container{bytes: test.bytes}}
			g.from = g.before()
			to, err := g.target()
			class := ErrShrink
			if test.options == (GrowOptions{}) {
				class = ErrNoSize
			}
			if to != test.want || (test.want == 0) != errors.Is(err, class) {
				t.Errorf("to %d: %v", to, err)
			}
		})
	}
}

// The journal of a growth that failed is as it was before, unless the container could not be cut to the size it had.
func TestForgetGrowth(t *testing.T) {
	for name, test := range map[string]struct {
		now         int64
		interrupted *growth
		want        *growth
	}{
		"as before":                 {8192, nil, nil},
		"longer":                    {12288, nil, &growth{UUID: "u", From: 8192, To: 16384}},
		"as an interruption has it": {8192, &growth{UUID: "u", From: 4096, To: 8192}, &growth{UUID: "u", From: 4096, To: 8192}},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := os.Create(filepath.Join(t.TempDir(), "volume.luks"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if err := file.Truncate(test.now); err != nil {
				t.Fatal(err)
			}
			g := &growing{Volume: testVolume(t, file.Name()), container: &container{File: file, bytes: 8192}, interrupted: test.interrupted,
				record: &Record{Pin: luks2.Pin{ContainerBytes: 8192}}, header: &luks2.Header{}, to: 16384}
			g.header.UUID = "u"
			g.from = g.before()
			if err := g.saveGrowth(); err != nil {
				t.Fatal(err)
			}
			if err := g.forgetGrowth(); err != nil {
				t.Fatal(err)
			}
			left, err := g.loadGrowth("u")
			if err != nil || (left == nil) != (test.want == nil) || left != nil && *left != *test.want {
				t.Errorf("%+v, %v", left, err)
			}
		})
	}
}
