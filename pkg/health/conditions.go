package health

import "slices"

// Code names a condition. The set is closed: conditions lists all of them, and
// their names are part of the HTTP, metrics and command line interfaces.
type Code string

// The conditions, in the order in which they are reported.
const (
	Guard         Code = "guard"
	Container     Code = "container"
	Header        Code = "header"
	Unlock        Code = "unlock"
	Filesystem    Code = "filesystem"
	Mount         Code = "mount"
	Store         Code = "store"
	Write         Code = "write"
	Gate          Code = "gate"
	Ciphertext    Code = "ciphertext"
	Thumbnail     Code = "thumbnail"
	Containers    Code = "containers"
	Space         Code = "space"
	Keys          Code = "keys"
	Protection    Code = "protection"
	Configuration Code = "configuration"
)

// Reason says why a condition does not hold. The reasons of a probe are the closed set
// that conditions gives for it; those of a lifecycle step are its caller's error classes.
type Reason string

// The reasons of the probes and of the Board itself.
const (
	ReasonBackupMissing      Reason = "header_backup_missing" // no copy of the header is kept beside it
	ReasonBackupOld          Reason = "header_backup_old"     // the header has changed since its copy was made
	ReasonCanaryKept         Reason = "canary_kept"           // Synapse does not delete a canary that was replaced
	ReasonCipherChanged      Reason = "cipher_changed"        // the header names another cipher than the pin
	ReasonCipherMismatch     Reason = "cipher_mismatch"       // the kernel's table names another cipher than the pin
	ReasonContainerStale     Reason = "container_stale_mount" // a container sees something else than the store
	ReasonContainerShared    Reason = "container_shared"      // something else has the container open, too
	ReasonCopiedOnWrite      Reason = "copied_on_write"       // what is overwritten in the container takes new room below
	ReasonCopyDamaged        Reason = "header_copy_damaged"   // one of the two copies of the header
	ReasonDrift              Reason = "tpm_drift"             // the TPM would not give a key any more
	ReasonEmergencyRO        Reason = "emergency_ro"          // ext4 takes no more writes after an error
	ReasonError              Reason = "error"                 // none of the others; the text says what
	ReasonFilesystemErrors   Reason = "filesystem_errors"     // the filesystem has counted errors
	ReasonFullSoon           Reason = "full_soon"             // at the rate of the last week
	ReasonGrowFailed         Reason = "grow_failed"           // the volume was to grow by itself
	ReasonHeaderDamaged      Reason = "header_damaged"        // both copies of the header
	ReasonHeaderRefused      Reason = "header_refused"        // the header is not one that luksmediad would open
	ReasonHole               Reason = "hole"                  // the file has no blocks on the disk that could be checked
	ReasonIO                 Reason = "io_error"              // EIO, or the bytes read back are not those written
	ReasonKeyFailed          Reason = "key_failed"            // a key source would not open the container
	ReasonKeyslotDamaged     Reason = "keyslot_damaged"       // a keyslot cannot be read, or is not as its copy
	ReasonKeyslotMissing     Reason = "keyslot_missing"       // a keyslot that luksmediad made is gone
	ReasonKeyslotUnknown     Reason = "keyslot_unknown"       // a keyslot that nobody is known to have made
	ReasonLocalStorageOff    Reason = "local_storage_off"     // Synapse does not keep media in the store
	ReasonLockoutNear        Reason = "tpm_lockout_near"      // half of the failures that lock the TPM
	ReasonLowInodes          Reason = "low_inodes"            // few inodes are left
	ReasonLowSpace           Reason = "low_space"             // little space is left
	ReasonMagicMissing       Reason = "magic_missing"         // the container does not begin with the LUKS magic
	ReasonNoInodes           Reason = "no_inodes"             // ENOSPC for want of inodes
	ReasonNoSpace            Reason = "no_space"              // ENOSPC, EDQUOT
	ReasonNotImage           Reason = "not_image"             // Synapse's answer cannot be decoded
	ReasonNotLUKS2           Reason = "not_luks2"             // the container has no LUKS2 header
	ReasonNotMounted         Reason = "not_mounted"           // the directory is not there, or not on the volume's device
	ReasonNotMovedIn         Reason = "not_moved_in"          // the store still lies outside the volume
	ReasonNotOnVolume        Reason = "not_on_volume"         // Synapse answered from files that are not on the volume
	ReasonNotRandom          Reason = "not_random"            // the raw bytes are no ciphertext
	ReasonOneWayIn           Reason = "one_way_in"            // fewer than two independent ways in
	ReasonOriginalGone       Reason = "original_gone"         // Synapse still knows an upload of which the store has no original any more
	ReasonPinMismatch        Reason = "pin_mismatch"          // the container is not the recorded one
	ReasonPlaintext          Reason = "plaintext"             // the raw bytes are the file's own
	ReasonPlaintextCopy      Reason = "plaintext_copy"        // Synapse keeps a second copy elsewhere
	ReasonPodmanStale        Reason = "podman_stale_mount"    // a container of podman sees something else than the store
	ReasonProcessStale       Reason = "process_stale_mount"   // a process that is in no container sees something else than the store
	ReasonReadOnly           Reason = "read_only"             // EROFS
	ReasonRefused            Reason = "refused"               // Synapse answered with an error
	ReasonShutdown           Reason = "filesystem_shutdown"   // the filesystem stopped itself
	ReasonStale              Reason = "stale"                 // the last outcome is older than three intervals
	ReasonSynapseBlocked     Reason = "synapse_blocked"       // the service is not let through to Synapse
	ReasonSynapseUnreachable Reason = "synapse_unreachable"   // no answer from Synapse
	ReasonTimeout            Reason = "timeout"               // the deadline passed
	ReasonTokenUnknown       Reason = "token_unknown"         // a token that nobody is known to have made
	ReasonUnauthorized       Reason = "unauthorized"          // Synapse does not take the token
	ReasonUnproven           Reason = "unproven"              // fewer than two independent ways in were proven of late
	ReasonUnreadable         Reason = "unreadable"            // the file, the container or the kernel's table cannot be read
	ReasonUploadsOnDisk      Reason = "uploads_on_disk"       // what is uploaded lies in clear text on a disk until it is complete
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
	follows   []Code   // causes whose failure (not whose absence) hides this condition, and only where it fails itself
	reasons   []Reason // of a probe: everything it fails with; nil marks a lifecycle step
	degrades  []Reason // with these reasons the failure is only a warning
	unseen    []Reason // by these reasons the probe saw nothing, so that even its warning is put down to a failed cause in follows
}

func (d definition) probed() bool { return d.reasons != nil }

// conditions is the one list behind /healthz, /readyz, the metrics, STATUS= and the status
// command. Causes stand before what depends on them.
var conditions = []definition{
	{code: Guard, title: "bare mountpoints refuse writes", impact: FailsHealth},
	// Nothing is opened over a mountpoint that is not guarded.
	{code: Container, title: "container attached", impact: FailsReady, follows: []Code{Guard}},
	{
		// A header that goes bad below an open volume keeps nobody from using it; one that keeps it closed fails Unlock.
		code: Header, title: "header valid and pinned", impact: FailsHealth, dependsOn: []Code{Container},
		reasons: []Reason{
			ReasonBackupMissing, ReasonBackupOld, ReasonCipherChanged, ReasonContainerShared, ReasonCopyDamaged, ReasonError, ReasonHeaderDamaged,
			ReasonHeaderRefused, ReasonIO, ReasonKeyslotDamaged, ReasonKeyslotMissing, ReasonKeyslotUnknown, ReasonNotLUKS2, ReasonPinMismatch,
			ReasonTimeout, ReasonTokenUnknown, ReasonUnreadable,
		},
		degrades: []Reason{
			ReasonBackupMissing, ReasonBackupOld, ReasonCopyDamaged, ReasonKeyslotDamaged, ReasonKeyslotMissing, ReasonKeyslotUnknown,
			ReasonTokenUnknown,
		},
	},
	{code: Unlock, title: "container unlocked", impact: FailsReady, dependsOn: []Code{Container}, follows: []Code{Header}},
	{code: Filesystem, title: "filesystem checked", impact: FailsReady, dependsOn: []Code{Unlock}},
	{code: Mount, title: "volume and stores mounted", impact: FailsReady, dependsOn: []Code{Filesystem}},
	{code: Store, title: "stores moved in", impact: Degrades, dependsOn: []Code{Mount}},
	{
		code: Write, title: "volume writable", impact: FailsReady, dependsOn: []Code{Mount},
		reasons: []Reason{
			ReasonEmergencyRO, ReasonError, ReasonFilesystemErrors, ReasonIO, ReasonNoInodes, ReasonNoSpace, ReasonNotMounted,
			ReasonReadOnly, ReasonShutdown, ReasonTimeout,
		},
		degrades: []Reason{ReasonFilesystemErrors},
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
			ReasonCanaryKept, ReasonError, ReasonIO, ReasonLocalStorageOff, ReasonNoInodes, ReasonNoSpace, ReasonNotImage,
			ReasonNotMounted, ReasonNotMovedIn, ReasonNotOnVolume, ReasonOriginalGone, ReasonPlaintextCopy, ReasonReadOnly, ReasonRefused,
			ReasonSynapseBlocked, ReasonSynapseUnreachable, ReasonTimeout, ReasonUnauthorized,
		},
		// Synapse's own state is not the volume's: it starts after the gate opens, and may be stopped.
		degrades: []Reason{ReasonCanaryKept, ReasonNotMovedIn, ReasonPlaintextCopy, ReasonSynapseBlocked, ReasonSynapseUnreachable},
	},
	{
		code: Containers, title: "services see the stores", impact: FailsHealth, dependsOn: []Code{Mount},
		reasons:  []Reason{ReasonContainerStale, ReasonError, ReasonNotMounted, ReasonPodmanStale, ReasonProcessStale, ReasonTimeout, ReasonUploadsOnDisk},
		degrades: []Reason{ReasonUploadsOnDisk},
	},
	{
		code: Space, title: "room left", impact: FailsHealth, dependsOn: []Code{Mount},
		reasons: []Reason{
			ReasonCopiedOnWrite, ReasonError, ReasonFullSoon, ReasonGrowFailed, ReasonIO, ReasonLowInodes, ReasonLowSpace, ReasonNoInodes,
			ReasonNoSpace, ReasonNotMounted, ReasonTimeout,
		},
		degrades: []Reason{ReasonCopiedOnWrite, ReasonFullSoon, ReasonGrowFailed, ReasonLowInodes, ReasonLowSpace},
	},
	{
		code: Keys, title: "two proven ways in", impact: Degrades, dependsOn: []Code{Container}, follows: []Code{Header},
		reasons: []Reason{
			ReasonDrift, ReasonError, ReasonIO, ReasonKeyFailed, ReasonLockoutNear, ReasonOneWayIn, ReasonTimeout, ReasonUnproven,
			ReasonUnreadable,
		},
		unseen: []Reason{ReasonIO, ReasonTimeout, ReasonUnreadable},
	},
	{code: Protection, title: "keys apart from the container", impact: Degrades, dependsOn: []Code{Container}},
	// What was refused when it was read again; what is in force is whole.
	{code: Configuration, title: "configuration in force as last asked for", impact: Degrades},
}

// OnlyDegrades tells whether a condition that fails for a reason costs no more than a warning.
func OnlyDegrades(code Code, reason Reason) bool {
	for _, d := range conditions {
		if d.code == code {
			return d.impact == Degrades || slices.Contains(d.degrades, reason)
		}
	}
	return false
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
