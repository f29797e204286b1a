package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// Level says what the keys of a volume protect it against. The set is closed; docs/threat-model.md explains it.
type Level string

// The levels, the weakest first. What is not known may be as bad as the weakest.
const (
	LevelNoneSameDisk Level = "none_same_disk" // a key lies on a disk of the container
	LevelUnknown      Level = "unknown"        // where a key lies cannot be found out
	LevelInherited    Level = "inherited"      // a key lies on a disk of the container, behind an encryption of its own
	LevelDiskTheft    Level = "disk_theft"     // a key lies on another built-in disk
	LevelRemovable    Level = "removable"      // a key lies on a disk that can be pulled out
	LevelNetwork      Level = "network"        // a key comes from another machine
	LevelSnapshot     Level = "snapshot"       // a key is sealed in the TPM
	LevelPerson       Level = "person"         // nothing but a person opens the volume
)

// Levels lists all levels, the weakest first.
func Levels() []Level {
	return []Level{LevelNoneSameDisk, LevelUnknown, LevelInherited, LevelDiskTheft, LevelRemovable, LevelNetwork, LevelSnapshot, LevelPerson}
}

// RootProtection is what the root filesystem is protected by: whoever can change it gets every key that comes without a person.
type RootProtection string

// What a root filesystem can be.
const (
	RootEncrypted RootProtection = "encrypted"
	RootVerified  RootProtection = "verified"
	RootPlain     RootProtection = "plain"
	RootUnknown   RootProtection = "unknown"
)

// Protection is what the keys protect the container against while the machine is off, or its disks are elsewhere.
type Protection struct {
	Level Level
	// Source is the kind of the key source that decides, Text what it means in a sentence.
	Source, Text string
	Root         RootProtection
	// PCRs are those that keys in the TPM are bound to; nil if none is sealed there or the header cannot be read.
	PCRs []int
	// Warning says what the root filesystem gives away, empty if nothing.
	Warning string
}

// Protection finds out what the configured key sources and the recorded keyslots protect the container against: the weakest of them
// decides. It needs no key and asks neither a TPM nor a server, but waits for a filesystem that hangs.
func (v *Volume) Protection() Protection {
	a := v.assessment()
	a.record, _ = v.loadRecord() // without it, the configuration decides alone
	a.header = v.peekHeader()
	return a.protection()
}

// PlannedProtection is that of the volume that Create would make: its key files and its container need not be there yet.
func (v *Volume) PlannedProtection() Protection {
	a := v.assessment()
	a.planned = true
	return a.protection()
}

// ProtectionBy is what a key file at path protects against; it need not be there yet.
func (v *Volume) ProtectionBy(path string) Protection {
	a := v.assessment()
	a.planned = true
	w := a.wayOfFile(sourceKeyFile, path)
	return Protection{Level: w.level, Source: w.source, Text: w.text}
}

// peekHeader reads the header for what its tokens tell; nil if it cannot be read.
func (v *Volume) peekHeader() *luks2.Header {
	container, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return nil
	}
	defer container.Close()
	header, err := inspectValid(container)
	if err != nil {
		return nil
	}
	return header
}

// assessment is what a protection is made from.
type assessment struct {
	config *config.Config
	// record and header are nil where there is none.
	record  *Record
	header  *luks2.Header
	planned bool
	machine machine
	// container are the disks of the container.
	container []mount.Carrier
}

// machine tells where files lie; [mount.Machine] does.
type machine interface {
	Locate(path string) []mount.Carrier
	Virtual() bool
}

func (v *Volume) assessment() *assessment {
	return newAssessment(v.config, mount.Machine{Root: "/"})
}

func newAssessment(config *config.Config, machine machine) *assessment {
	return &assessment{config: config, machine: machine, container: machine.Locate(config.Volume.Container)}
}

// way is one way to get a key, and what it protects against.
type way struct {
	source string
	level  Level
	text   string
}

func (a *assessment) protection() Protection {
	weakest := slices.MinFunc(a.ways(), func(x, y way) int {
		return slices.Index(Levels(), x.level) - slices.Index(Levels(), y.level)
	})
	p := Protection{Level: weakest.level, Source: weakest.source, Text: weakest.text, Root: rootOf(a.machine.Locate("/")), PCRs: a.pcrs()}
	if p.Level != LevelPerson {
		p.Warning = a.rootWarning(p.Root)
	}
	return p
}

// ways are those of the configured sources and those of the recorded keyslots that no configured source speaks for: their keys still
// open the container.
func (a *assessment) ways() []way {
	var ways []way
	configured := []string{sourceRecovery}
	for _, source := range a.config.Unlock {
		ways = append(ways, a.wayOf(source))
		configured = append(configured, source.Kind())
	}
	if a.record != nil {
		for _, keyslot := range a.record.Keyslots {
			if !slices.Contains(configured, keyslot.Source) {
				ways = append(ways, a.wayOfKind(keyslot.Source, fmt.Sprintf("keyslot %d", keyslot.Slot)))
			}
		}
	}
	return ways
}

func (a *assessment) wayOf(source config.KeySource) way {
	switch {
	case source.TPM2 != nil && tpm2.IsSoftware(source.TPM2.Device):
		return unknownWay(source.Kind(), fmt.Sprintf("TPM %s is a program, whose state may lie on the disk of the container", source.TPM2.Device))
	case source.Keyfile != nil:
		return a.wayOfFile(source.Kind(), source.Keyfile.Path)
	}
	return a.wayOfKind(source.Kind(), "key source "+source.Kind())
}

// wayOfKind judges what is told apart by nothing but its kind. What is not known here is unknown.
func (a *assessment) wayOfKind(kind, name string) way {
	switch kind {
	case sourceTPM2:
		return a.wayOfTPM(kind)
	case sourceClevis:
		return wayOfClevis(a.header, name)
	case sourcePassphrase:
		return way{kind, LevelPerson, "only a person opens the volume: no image of this machine's disks has a key"}
	case sourceKeyFile:
		return unknownWay(kind, name+" opens with a key file that the configuration does not name")
	case sourceCredential:
		return unknownWay(kind, name+" opens with a systemd credential, whose own key may lie on the disk of the container")
	}
	return unknownWay(kind, fmt.Sprintf("where %s has its key from is not known", name))
}

func unknownWay(kind, text string) way { return way{kind, LevelUnknown, text} }

func (a *assessment) wayOfTPM(kind string) way {
	text := "the key is sealed in the TPM" + a.bound() + ": a stolen disk, a backup or a snapshot without the TPM's state gives nothing away"
	if a.machine.Virtual() {
		text += "; whether snapshots of this virtual machine have that state only its provider can tell"
	}
	return way{kind, LevelSnapshot, text}
}

// bound says what the tokens in the TPM are bound to.
func (a *assessment) bound() string {
	pcrs := a.pcrs()
	switch {
	case pcrs == nil:
		return ""
	case len(pcrs) == 0:
		return ", bound to no PCRs"
	}
	return ", bound to PCRs " + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(pcrs)), ", "), "[]")
}

// pcrs are those of the header's tokens, literal and signed.
func (a *assessment) pcrs() []int {
	if a.header == nil {
		return nil
	}
	var pcrs []int
	for _, raw := range a.header.Tokens(tpm2.TokenType) {
		token, err := tpm2.ParseToken(raw.Raw)
		if err != nil {
			continue
		}
		if pcrs == nil {
			pcrs = []int{} // a token without any
		}
		pcrs = append(append(pcrs, token.PCRs...), token.PubkeyPCRs...)
	}
	slices.Sort(pcrs)
	return slices.Compact(pcrs)
}

// wayOfFile judges where a key file lies beside the container.
func (a *assessment) wayOfFile(kind, path string) way {
	name := "key file " + path
	if _, err := os.Lstat(path); err != nil && !a.planned {
		return unknownWay(kind, name+" "+whyUnseen(err)+": where its key is kept is not known")
	}
	key := a.machine.Locate(path)
	same, behind := a.shared(key)
	if same != "" {
		return way{kind, LevelNoneSameDisk, fmt.Sprintf("%s lies on disk %s, as the container does: whoever has that disk, or a snapshot or backup of it, "+
			"has the key; it protects against nothing but a partial leak", name, same)}
	}
	if why := unresolved(key, a.container); why != "" {
		return unknownWay(kind, fmt.Sprintf("whether %s lies on a disk of the container cannot be told: %s", name, why))
	}
	if behind != "" {
		return way{kind, LevelInherited, fmt.Sprintf("%s lies on a disk of the container, on the encrypted %s: it is as safe as the keys of that are",
			name, behind)}
	}
	return a.apart(kind, name, key)
}

func whyUnseen(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "is not there"
	}
	return "cannot be seen"
}

// shared names a disk that carries both key and container and, if the key is encrypted wherever that is so, the mapping that does it.
func (a *assessment) shared(key []mount.Carrier) (same, behind string) {
	for _, k := range key {
		if !slices.ContainsFunc(a.container, k.Same) {
			continue
		}
		if len(k.Encrypted) == 0 {
			return k.Name, ""
		}
		behind = k.Encrypted[0]
	}
	return "", behind
}

// unresolved says what keeps key and container from being compared; empty if nothing does.
func unresolved(key, container []mount.Carrier) string {
	for _, c := range slices.Concat(key, container) {
		if c.Medium == mount.Unresolved {
			return c.Why
		}
	}
	for _, k := range key {
		switch {
		case k.Medium == mount.InMemory:
			return "it lies in memory, and who puts it there after each boot is not known"
		case k.Medium == mount.OnNetwork && slices.ContainsFunc(container, func(c mount.Carrier) bool { return c.Medium == mount.OnNetwork }):
			return "both lie on a network filesystem"
		}
	}
	return ""
}

// apart judges a key that shares no disk with the container.
func (a *assessment) apart(kind, name string, key []mount.Carrier) way {
	where := namesOf(key)
	switch {
	case slices.ContainsFunc(key, func(c mount.Carrier) bool { return c.Medium == mount.OnDisk && !c.Removable }):
		text := fmt.Sprintf("%s lies on %s, the container on %s: that helps while only the disk of the container gets into other hands, "+
			"not against whoever has all disks of this machine", name, where, namesOf(a.container))
		if a.machine.Virtual() {
			text += ", as a snapshot of the whole virtual machine does"
		}
		return way{kind, LevelDiskTheft, text}
	case slices.ContainsFunc(key, func(c mount.Carrier) bool { return c.Medium == mount.OnDisk }):
		return way{kind, LevelRemovable, fmt.Sprintf("%s lies on removable %s: the built-in disks and their backups give nothing away; "+
			"whoever takes the machine with it has the key", name, where)}
	}
	return way{kind, LevelNetwork, fmt.Sprintf("%s lies on another machine, %s: the disks of this one give nothing away "+
		"to whoever cannot reach it", name, where)}
}

func namesOf(carriers []mount.Carrier) string {
	var names []string
	for _, c := range carriers {
		if !slices.Contains(names, c.Name) {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ")
}

// rootOf judges the disks of the root filesystem; what it has in memory is gone after a boot.
func rootOf(carriers []mount.Carrier) RootProtection {
	found := RootUnknown
	for _, c := range carriers {
		switch {
		case c.Medium == mount.InMemory:
		case c.Medium != mount.OnDisk:
			return RootUnknown
		case len(c.Encrypted) > 0 && found != RootPlain:
			found = RootEncrypted
		case c.Verified && found != RootPlain:
			found = RootVerified
		default:
			found = RootPlain
		}
	}
	return found
}

// rootWarning is what systemd/systemd#42748 is about: a root filesystem that asks for no key is exchanged, and the other one is given
// the key.
func (a *assessment) rootWarning(root RootProtection) string {
	const gets = "whoever boots this machine with a changed one gets the key"
	var pcrs string
	if bound := a.bound(); bound != "" {
		pcrs = "; in the TPM it is" + strings.TrimPrefix(bound, ",")
	}
	switch root {
	case RootPlain:
		return "root filesystem is neither encrypted nor verified: " + gets + pcrs
	case RootUnknown:
		return "whether the root filesystem is encrypted or verified cannot be told; if not, " + gets + pcrs
	}
	return ""
}
