//go:build kernel

package volume

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"luksmediad/test/logwrites"
)

// recording is all that is written to the disks of a site, in the order in which it became durable. From it comes what a power failure
// would have left at any moment.
type recording struct {
	s     *site
	disks []*loggedDisk
	marks []mark
}

// loggedDisk is one of the disks.
type loggedDisk struct {
	*powered
	// before is a copy of the disk as it was when the recording began; replaying makes it what it was later.
	before   *os.File
	replayed int
	// log is what is written, in the format of dm-log-writes; its device is the one that it is written to.
	logFile, logDevice string
	log                *logwrites.Log
	// marks are where in the log they are.
	marks []int
}

// mark is a moment.
type mark struct {
	what, name string
	// rest: from here to the next mark something else is written that nobody wants to know.
	rest bool
	// ended: what was asked for has been done.
	ended bool
}

// moment is what a power failure may leave on the disks: so many entries of each log.
type moment struct {
	mark
	entries []int
}

const (
	logMebibytes  = 2048 // sparse
	copyMebibytes = 256  // what a boot and a whole operation may change of a disk
	copyChunk     = 8    // sectors, the block of a filesystem
)

// record puts a closed site on disks that log.
func (p *power) record() *recording {
	p.s.t.Helper()
	r := &recording{s: p.s}
	p.off()
	for _, d := range p.disks {
		before := d.image + ".before"
		d.s.run("cp", "--sparse=always", d.image, before)
		file, err := os.OpenFile(before, os.O_RDWR, 0)
		d.s.must(err)
		d.s.t.Cleanup(func() { _ = file.Close() })
		log := &loggedDisk{powered: d, before: file, logFile: d.image + ".log"}
		log.logDevice = d.s.newLoop(log.logFile, logMebibytes)
		d.table = fmt.Sprintf("0 %d log-writes %s %s", d.sectors(), d.lower, log.logDevice)
		r.disks = append(r.disks, log)
	}
	p.on()
	return r
}

// mark notes the moment in every log: what is durable is before it, and everything else behind it.
func (r *recording) mark(m mark) {
	r.s.t.Helper()
	for _, d := range r.disks {
		r.s.run("dmsetup", "message", d.name, "0", "mark", strconv.Itoa(len(r.marks)))
	}
	r.marks = append(r.marks, m)
}

// end takes power from the disks, and reads the logs.
func (r *recording) end() {
	r.s.t.Helper()
	for _, d := range r.disks {
		if status := r.s.run("dmsetup", "status", d.name); strings.Contains(status, "logging_disabled") {
			r.s.t.Fatalf("%s: %s", d.name, status)
		}
	}
	r.s.power.fail() // with which the targets write the ends of the logs
	r.s.power.off()
	for _, d := range r.disks {
		d.read()
		if len(d.marks) != len(r.marks) {
			r.s.t.Fatalf("%s: %d marks of %d", d.name, len(d.marks), len(r.marks))
		}
	}
}

func (d *loggedDisk) read() {
	d.s.t.Helper()
	file, err := os.Open(d.logFile)
	d.s.must(err)
	d.s.t.Cleanup(func() { _ = file.Close() })
	d.log, err = logwrites.Read(file)
	d.s.must(err)
	for i, e := range d.log.Entries {
		if e.Flags&logwrites.Mark != 0 && e.Mark == strconv.Itoa(len(d.marks)) {
			d.marks = append(d.marks, i)
		}
	}
}

// moments are those at the marks, where on all disks only that is left which had to be, and those right after whatever became durable
// between two marks. Where that is so on several disks, only the marks tell which came first, and the moments between them are left out.
func (r *recording) moments() []moment {
	var moments []moment
	for i, m := range r.marks {
		at := moment{mark: m}
		for _, d := range r.disks {
			at.entries = append(at.entries, d.marks[i])
		}
		moments = append(moments, at)
		if m.rest || i+1 == len(r.marks) {
			continue
		}
		only := slices.DeleteFunc(r.flushed(i), func(f flushed) bool { return len(f.after) == 0 })
		if len(only) != 1 {
			continue
		}
		for n, entries := range only[0].after {
			between := moment{mark: mark{what: m.what, name: fmt.Sprintf("%s, then flush %d", m.name, n+1)}, entries: slices.Clone(at.entries)}
			between.entries[only[0].disk] = entries
			moments = append(moments, between)
		}
	}
	return r.different(moments)
}

// flushed are the places in the log of a disk behind what is durable.
type flushed struct {
	disk  int
	after []int
}

func (r *recording) flushed(mark int) []flushed {
	var all []flushed
	for i, d := range r.disks {
		f := flushed{disk: i}
		for entry := d.marks[mark]; entry < d.marks[mark+1]; entry++ {
			if d.log.Entries[entry].Durable() {
				f.after = append(f.after, entry+1)
			}
		}
		all = append(all, f)
	}
	return all
}

// different leaves out moments at which the disks are as they were before, but for the ends.
func (r *recording) different(moments []moment) []moment {
	last := make([]int, len(r.disks))
	return slices.DeleteFunc(moments, func(m moment) bool {
		written := m.ended
		for i, d := range r.disks {
			for _, e := range d.log.Entries[min(last[i], m.entries[i]):m.entries[i]] {
				written = written || e.Bytes > 0
			}
		}
		if written {
			copy(last, m.entries)
		}
		return !written
	})
}

// sample is that many of the moments, and all the ends.
func sample(moments []moment, count int) []moment {
	var taken []moment
	for i, m := range moments {
		if m.ended || i*count/len(moments) != (i+1)*count/len(moments) {
			taken = append(taken, m)
		}
	}
	return taken
}

// replay gives the disks power again, with what they had at one moment after the other, and has it looked at. What that changes is on
// copies.
func (r *recording) replay(moments []moment, look func(moment)) {
	r.s.t.Helper()
	for _, d := range r.disks {
		origin := r.s.loopOn(d.before.Name())
		changes := r.s.newLoop(d.image+".changes", copyMebibytes)
		d.table = fmt.Sprintf("0 %d snapshot %s %s N %d", d.sectors(), origin, changes, copyChunk)
	}
	for i, m := range moments {
		if i > 0 {
			r.s.power.fail()
			r.s.power.off()
		}
		for i, d := range r.disks {
			r.s.must(d.log.Replay(d.before, d.replayed, m.entries[i]))
			d.replayed = m.entries[i]
		}
		r.s.power.on()
		r.look(m, look)
	}
}

// look tells the moment of whatever fails.
func (r *recording) look(m moment, look func(moment)) {
	defer func() {
		if r.s.t.Failed() {
			r.s.t.Logf("%s, %s: entries %v", m.what, m.name, m.entries)
		}
	}()
	look(m)
}
