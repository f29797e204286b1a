package health

import "slices"

// Code names a condition. The set is closed: conditions lists all of them, and
// their names are part of the HTTP, metrics and command line interfaces.
type Code string

// The conditions, in the order in which they are reported.
const (
	Container  Code = "container"
	Header     Code = "header"
	Unlock     Code = "unlock"
	Filesystem Code = "filesystem"
	Mount      Code = "mount"
	Guard      Code = "guard"
	Store      Code = "store"
	Write      Code = "write"
	Gate       Code = "gate"
	Ciphertext Code = "ciphertext"
	Thumbnail  Code = "thumbnail"
	Protection Code = "protection"
)

// Reason says why a condition does not hold. The reasons of a probe are the closed set
// that conditions gives for it; those of a lifecycle step are its caller's error classes.
type Reason string

// The reasons of the probes and of the Board itself.
const (
	ReasonCipherMismatch     Reason = "cipher_mismatch"     // the kernel's table names another cipher than the pin
	ReasonError              Reason = "error"               // none of the others; the text says what
	ReasonHole               Reason = "hole"                // the file has no blocks on the disk that could be checked
	ReasonIO                 Reason = "io_error"            // EIO, or the bytes read back are not those written
	ReasonMagicMissing       Reason = "magic_missing"       // the container does not begin with the LUKS magic
	ReasonNoSpace            Reason = "no_space"            // ENOSPC, EDQUOT
	ReasonNotImage           Reason = "not_image"           // Synapse's answer cannot be decoded
	ReasonNotMounted         Reason = "not_mounted"         // the directory is not there, or not on the volume's device
	ReasonNotMovedIn         Reason = "not_moved_in"        // the store still lies outside the volume
	ReasonNotOnVolume        Reason = "not_on_volume"       // Synapse answered from files that are not on the volume
	ReasonNotRandom          Reason = "not_random"          // the raw bytes are no ciphertext
	ReasonPlaintext          Reason = "plaintext"           // the raw bytes are the file's own
	ReasonReadOnly           Reason = "read_only"           // EROFS
	ReasonRefused            Reason = "refused"             // Synapse answered with an error
	ReasonStale              Reason = "stale"               // the last outcome is older than three intervals
	ReasonSynapseUnreachable Reason = "synapse_unreachable" // no answer from Synapse
	ReasonTimeout            Reason = "timeout"             // the deadline passed
	ReasonUnauthorized       Reason = "unauthorized"        // Synapse does not take the token
	ReasonUnreadable         Reason = "unreadable"          // the file, the container or the kernel's table cannot be read
)

// Impact is what a condition costs when it fails.
type Impact int

// The impacts, from the mildest.
const (
	Degrades    Impact = iota // a warning: /healthz stays 200 and names it
	FailsHealth               // /healthz answers 503
	FailsReady                // /readyz and /healthz answer 503
)

// definition is one row of the table of conditions.
type definition struct {
	code      Code
	title     string
	impact    Impact
	dependsOn []Code   // causes: while one of these fails, this condition is hidden
	reasons   []Reason // of a probe: everything it fails with; nil marks a lifecycle step
	degrades  []Reason // with these reasons the failure is only a warning
}

func (d definition) probed() bool { return d.reasons != nil }

// conditions is the one list behind /healthz, /readyz, the metrics, STATUS= and the status
// command. Causes stand before what depends on them.
var conditions = []definition{
	{code: Container, title: "container attached", impact: FailsReady},
	{code: Header, title: "header valid and pinned", impact: FailsReady, dependsOn: []Code{Container}},
	{code: Unlock, title: "container unlocked", impact: FailsReady, dependsOn: []Code{Header}},
	{code: Filesystem, title: "filesystem checked", impact: FailsReady, dependsOn: []Code{Unlock}},
	{code: Mount, title: "volume and stores mounted", impact: FailsReady, dependsOn: []Code{Filesystem}},
	{code: Guard, title: "bare mountpoints refuse writes", impact: FailsHealth},
	{code: Store, title: "stores moved in", impact: Degrades, dependsOn: []Code{Mount}},
	{
		code: Write, title: "volume writable", impact: FailsReady, dependsOn: []Code{Mount},
		reasons: []Reason{ReasonError, ReasonIO, ReasonNoSpace, ReasonNotMounted, ReasonReadOnly, ReasonTimeout},
	},
	{code: Gate, title: "gate open", impact: FailsReady, dependsOn: []Code{Mount, Guard, Write}},
	{
		code: Ciphertext, title: "disk holds ciphertext", impact: FailsHealth, dependsOn: []Code{Mount},
		reasons: []Reason{
			ReasonCipherMismatch, ReasonError, ReasonHole, ReasonIO, ReasonMagicMissing, ReasonNotMounted,
			ReasonNotMovedIn, ReasonNotRandom, ReasonPlaintext, ReasonTimeout, ReasonUnreadable,
		},
		degrades: []Reason{ReasonNotMovedIn},
	},
	{
		code: Thumbnail, title: "Synapse serves from the volume", impact: FailsHealth, dependsOn: []Code{Mount, Write},
		reasons: []Reason{
			ReasonError, ReasonIO, ReasonNoSpace, ReasonNotImage, ReasonNotMounted, ReasonNotMovedIn, ReasonNotOnVolume,
			ReasonReadOnly, ReasonRefused, ReasonSynapseUnreachable, ReasonTimeout, ReasonUnauthorized,
		},
		// Synapse's own state is not the volume's: it starts after the gate opens, and may be stopped.
		degrades: []Reason{ReasonNotMovedIn, ReasonSynapseUnreachable},
	},
	{code: Protection, title: "keys apart from the container", impact: Degrades, dependsOn: []Code{Container}},
}

// Codes returns every condition in the order in which they are reported.
func Codes() []Code {
	codes := make([]Code, 0, len(conditions))
	for _, d := range conditions {
		codes = append(codes, d.code)
	}
	return codes
}

// Reasons returns the closed set of reasons of a probe, nil for a lifecycle step.
func Reasons(code Code) []Reason {
	for _, d := range conditions {
		if d.code == code {
			return slices.Clone(d.reasons)
		}
	}
	return nil
}
