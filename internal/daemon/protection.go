package daemon

import (
	"fmt"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// assessPatience is how long nothing is said about a look that hangs.
const assessPatience = 10 * time.Second

// assess finds out where the keys lie. A look that hangs, as on a network filesystem whose server is gone, is not begun a second time and
// holds up nothing.
func (d *Daemon) assess() {
	if !d.assessing.CompareAndSwap(false, true) {
		return
	}
	found := make(chan volume.Protection, 1)
	go func() {
		kept := d.Assessor.Kept()
		d.Collector.SetKeyslots(kept.Purposes)
		d.Collector.SetHeaderBackup(kept.HeaderBackup)
		d.Collector.SetRecoveryDrill(kept.RecoveryProven)
		found <- d.Assessor.Protection()
	}()
	go func() {
		defer d.assessing.Store(false)
		select {
		case p := <-found:
			d.reportProtection(p)
		case <-time.After(assessPatience):
			d.Board.Set(health.Protection, health.Fail, ReasonProtectionUnknown,
				fmt.Sprintf("where the keys lie was not found out in %v: a disk or a server may hang", assessPatience))
			d.reportProtection(<-found)
		}
	}()
}

// reportProtection turns what was found into a condition, a metric and, if it is news, an event.
func (d *Daemon) reportProtection(p volume.Protection) {
	if d.view.setProtection(p) {
		d.Journal.Emit(journal.ProtectionChanged, journal.F("LEVEL", string(p.Level)), journal.F("SOURCE", p.Source), journal.F("TEXT", p.Text))
	}
	d.Collector.SetProtection(string(p.Level))
	switch p.Level {
	case volume.LevelNoneSameDisk:
		d.Board.Set(health.Protection, health.Fail, ReasonKeySameDisk, p.Text)
	case volume.LevelUnknown:
		d.Board.Set(health.Protection, health.Fail, ReasonProtectionUnknown, p.Text)
	default:
		d.Board.Set(health.Protection, health.OK, "", p.Text)
	}
}

// ProtectionOf puts what was found out into the words of the API.
func ProtectionOf(p volume.Protection) api.Protection {
	return api.Protection{Level: api.ProtectionLevel(p.Level), Source: api.SourceKind(p.Source), Text: p.Text,
		Root: api.ProtectionRoot(p.Root), Warning: p.Warning, PCRs: p.PCRs}
}
