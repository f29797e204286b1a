package logwrites

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

const sector = 512

// written is a log as the kernel writes it.
type written struct {
	bytes.Buffer
	count uint64
}

func (w *written) pad() { w.Write(make([]byte, (sector-w.Len()%sector)%sector)) }

func (w *written) add(flags Flags, first uint64, data []byte, mark string) *written {
	if w.Len() == 0 {
		w.Write(make([]byte, sector))
	}
	for _, field := range []uint64{first, uint64(len(data)) / sector, uint64(flags), uint64(len(mark))} {
		w.Write(binary.LittleEndian.AppendUint64(nil, field))
	}
	w.WriteString(mark)
	w.pad()
	if flags&Discard == 0 {
		w.Write(data)
	}
	w.count++
	return w
}

func (w *written) log() []byte {
	raw := bytes.Clone(w.Bytes())
	binary.LittleEndian.PutUint64(raw, magic)
	binary.LittleEndian.PutUint64(raw[8:], version)
	binary.LittleEndian.PutUint64(raw[16:], w.count)
	binary.LittleEndian.PutUint32(raw[24:], sector)
	return raw
}

func block(content byte) []byte { return bytes.Repeat([]byte{content}, sector) }

func sample() []byte {
	w := &written{}
	return w.add(0, 3, block('a'), "").add(Metadata, 1, append(block('b'), block('c')...), "").add(Flush, 0, nil, "").
		add(Mark, 0, nil, "here").add(Discard, 2, block('-'), "").add(Flush|FUA, 3, block('d'), "").log()
}

func TestReplay(t *testing.T) {
	log, err := Read(bytes.NewReader(sample()))
	if err != nil {
		t.Fatal(err)
	}
	var durable []int
	for i, e := range log.Entries {
		if e.Durable() {
			durable = append(durable, i)
		}
	}
	if !reflect.DeepEqual(durable, []int{2, 5}) || log.Entries[3].Mark != "here" {
		t.Errorf("durable %v, entries %+v", durable, log.Entries)
	}
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	from := 0
	for _, step := range []struct {
		to   int
		want string
	}{{1, "\x00\x00\x00a"}, {4, "\x00bca"}, {5, "\x00b\x00a"}, {6, "\x00b\x00d"}} {
		if err := log.Replay(disk, from, step.to); err != nil {
			t.Fatal(err)
		}
		from = step.to
		var want []byte
		for _, content := range []byte(step.want) {
			want = append(want, block(content)...)
		}
		have, err := io.ReadAll(io.NewSectionReader(disk, 0, 1<<30))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("up to %d: not %q, %v", step.to, step.want, err)
		}
	}
}

func TestReadCorrupt(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":         func([]byte) []byte { return nil },
		"magic":         func(raw []byte) []byte { raw[0]++; return raw },
		"version":       func(raw []byte) []byte { raw[8]++; return raw },
		"count":         func(raw []byte) []byte { raw[16]++; return raw },
		"sector":        func(raw []byte) []byte { raw[24]++; return raw },
		"small sector":  func(raw []byte) []byte { binary.LittleEndian.PutUint32(raw[24:], 16); return raw },
		"cut":           func(raw []byte) []byte { return raw[:sector+100] },
		"flags":         func(raw []byte) []byte { raw[sector+16] = 32; return raw },
		"sectors":       func(raw []byte) []byte { raw[sector+12] = 1; return raw },
		"place":         func(raw []byte) []byte { raw[sector+7] = 1; return raw },
		"data of a bio": func(raw []byte) []byte { raw[sector+24] = 1; return raw },
		"long mark": func([]byte) []byte {
			raw := (&written{}).add(Mark, 0, nil, "mark").log()
			raw[sector+26] = 1
			return raw
		},
	} {
		t.Run(name, func(t *testing.T) {
			if log, err := Read(bytes.NewReader(damage(sample()))); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%+v, %v", log, err)
			}
		})
	}
}

// FuzzRead: whatever is accepted lies in the log, but for what is replayed onto a device.
func FuzzRead(f *testing.F) {
	f.Add(sample())
	f.Add((&written{}).add(Mark, 0, nil, "mark").add(Mark|Flush, 7, nil, "").log())
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := Read(bytes.NewReader(raw))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		for i, e := range log.Entries {
			if e.At < 0 || e.Bytes < 0 || e.data < 0 || e.data > int64(len(raw)) {
				t.Errorf("entry %d: %+v", i, e)
			}
		}
	})
}
