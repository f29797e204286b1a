package journal

import systemd "github.com/coreos/go-systemd/v22/journal"

// Event is one kind of thing that happens. The list is closed; names and identifiers are never reused.
type Event int

// What luksmediad reports.
const (
	DaemonStarted Event = iota
	DaemonStopping
	Created
	KeyslotAdded
	ContainerAttached
	HeaderDamaged
	ForeignRefused
	Unlocked
	SourceFailed
	NoKeyFits
	OpenFailed
	Adopted
	Closed
	FilesystemChecked
	Mounted
	Unmounted
	StoreBound
	StoreUnbound
	Guarded
	GuardViolated
	GateOpened
	GateClosed
	ServiceStopped
	ServiceStarted
	ServicesFailed
	ProbeFailed
	ProbeRecovered
	ConditionChanged
	ProtectionChanged
	RetryScheduled
	ControlRequest
	Failed
	EventsDropped
	KeyslotRemoved
	Grown
	GrowFailed
	Resealed
	ResealFailed
	PinAccepted
	ContainerAdopted
	KeyslotLeft
	MoveBegun
	MovedIn
	MoveFailed
	MovedBack
	Purged
	CopyVerified
	Reloaded
	ReloadRefused
	eventCount
)

// Priority is syslog's severity, as in sd-daemon(3).
type Priority = systemd.Priority

// The priorities that are used.
const (
	Critical = systemd.PriCrit
	Error    = systemd.PriErr
	Warning  = systemd.PriWarning
	Notice   = systemd.PriNotice
	Info     = systemd.PriInfo
)

// object is another unit whose journal shows the event too.
type object int

const (
	noObject   object = iota
	cryptsetup        // systemd-cryptsetup@MAPPING.service
	docker            // docker.service
	service           // the unit that LUKSMEDIAD_SERVICE names
)

// definition is what is constant about an event. Its text, for the journal's catalog, may name fields as @FIELD@.
type definition struct {
	name     string // value of LUKSMEDIAD_EVENT
	id       string // MESSAGE_ID, from systemd-id128 new
	priority Priority
	object   object
	message  string
	text     string
}

// Name is the event's constant name, the value of LUKSMEDIAD_EVENT.
func (e Event) Name() string { return e.definition().name }

// MessageID is the event's MESSAGE_ID, 32 hexadecimal digits.
func (e Event) MessageID() string { return e.definition().id }

// Priority is the event's priority unless it is reported with another one.
func (e Event) Priority() Priority { return e.definition().priority }

// String is the event's constant message.
func (e Event) String() string { return e.definition().message }

func (e Event) definition() definition { return definitions[e] }

var definitions = [eventCount]definition{
	DaemonStarted: {
		"daemon_started", "96ef59f5c46749ce83ecaad2303f2789", Info, noObject, "luksmediad started",
		"The daemon has read its configuration and begins to look for the container, or for a volume that is open already.",
	},
	DaemonStopping: {
		"daemon_stopping", "6dcd2428e11e4ce8a4fa8fda96ba9502", Info, noObject, "luksmediad stops",
		"The daemon ends. What is mounted stays mounted; the next daemon adopts it.",
	},
	Created: {
		"created", "a3340cc13d50417c90f62fb48ae6deac", Notice, cryptsetup, "container created",
		"A new LUKS2 container was made, with its keyslots, filesystem and stores.",
	},
	KeyslotAdded: {
		"keyslot_added", "cff861c24e7f409dbab17ca72b69be46", Notice, cryptsetup, "keyslot added",
		"The container can be opened with one more key.",
	},
	ContainerAttached: {
		"container_attached", "55369c06b22a4ac4b83e5f4016adb40e", Info, noObject, "container attached",
		"The container file has a loop device. Nothing is decrypted yet.",
	},
	HeaderDamaged: {
		"header_damaged", "0b55d76d345f4c6ea76b975cf0d7872c", Warning, cryptsetup, "LUKS2 header damaged",
		"One of the two copies of the header cannot be used. The other one is whole, so that the volume still opens. " +
			"Nothing was repaired.",
	},
	ForeignRefused: {
		"foreign_refused", "fed321efa1bf4cf4a28cc0d8ce236092", Error, cryptsetup, "something foreign refused",
		"What stands where luksmediad expects something of its own was not made by it or differs from what it recorded. " +
			"It was left untouched.",
	},
	Unlocked: {
		"unlocked", "ee619ecc7a6d4d52bc2f2d0955b589fe", Notice, cryptsetup, "volume unlocked",
		"The container is open as /dev/mapper/@LUKSMEDIAD_MAPPING@.",
	},
	SourceFailed: {
		"source_failed", "90d8d7e03d8f4b19a73ccd08a241d537", Warning, cryptsetup, "key source failed",
		"A key source gave no key that opens the container. The next one, if there is one, is tried.",
	},
	NoKeyFits: {
		"no_key_fits", "439cbab4f4aa47909eb5f28879891c9f", Error, cryptsetup, "no key fits",
		"No configured key source opens the container. The volume stays locked and the gate closed.",
	},
	OpenFailed: {
		"open_failed", "5a715504cedd40dda417e9a028f03076", Error, cryptsetup, "volume not opened",
		"A step on the way from the container to the mounted stores failed. The gate stays closed.",
	},
	Adopted: {
		"adopted", "968fd14d3bff4ab985fcd445b2102c0d", Notice, cryptsetup, "open volume adopted",
		"/dev/mapper/@LUKSMEDIAD_MAPPING@ was open already and is what it should be. No key was needed.",
	},
	Closed: {
		"closed", "77433815165c49b98060dcd1742bfefb", Notice, cryptsetup, "volume closed",
		"/dev/mapper/@LUKSMEDIAD_MAPPING@ is gone, and its key with it.",
	},
	FilesystemChecked: {
		"filesystem_checked", "b14ae298b5eb41319a6861387acec560", Info, noObject, "filesystem checked",
		"The filesystem was checked before it is mounted.",
	},
	Mounted: {
		"mounted", "936a3868a204415896ec5ad2875101cc", Info, noObject, "filesystem mounted",
		"The volume's filesystem is mounted at its private root.",
	},
	Unmounted: {
		"unmounted", "54d4db9f8b894525bc70d24c0f84ecda", Info, noObject, "filesystem unmounted",
		"The volume's filesystem is no longer mounted at its private root.",
	},
	StoreBound: {
		"store_bound", "e678b423f4ae475da92ac70d816096b5", Info, noObject, "store bound",
		"Store @LUKSMEDIAD_STORE@ is mounted where its service expects it.",
	},
	StoreUnbound: {
		"store_unbound", "899f378e17424dee8d316947e64e1b8c", Info, noObject, "store unbound",
		"Store @LUKSMEDIAD_STORE@ is no longer mounted where its service expects it.",
	},
	Guarded: {
		"guarded", "56a2226468b5463c8c7caf7fd9c2582e", Info, noObject, "mountpoint guarded",
		"The bare directory below a store is root's, without any permission, and immutable. Nothing can be written there " +
			"in clear text.",
	},
	GuardViolated: {
		"guard_violated", "1f3d284a15164966b5217481a3dffbaa", Critical, noObject, "guard violated",
		"The bare directory below a store is not guarded, or cannot be: it could be written to. Files may lie in clear text where the " +
			"volume should be.",
	},
	GateOpened: {
		"gate_opened", "1804f27492ea4428932aeb96ce46d888", Notice, docker, "gate opened",
		"Every store is mounted and writable. What requires luksmediad-gate.service may start.",
	},
	GateClosed: {
		"gate_closed", "37e6350d008d4d3f85e1d2817bbbc6cb", Warning, docker, "gate closed",
		"A store is not there or not writable: @LUKSMEDIAD_TEXT@. What requires luksmediad-gate.service does not start.",
	},
	ServiceStopped: {
		"service_stopped", "c4e8b6668cc14099b2ef25be46887ebf", Notice, service, "service of a store stopped",
		"luksmediad stopped @LUKSMEDIAD_SERVICE@ because it uses a store and the volume is to be locked.",
	},
	ServiceStarted: {
		"service_started", "3cfc4c199c754c649c78dbc6e89dacd6", Notice, service, "service of a store started",
		"luksmediad started @LUKSMEDIAD_SERVICE@, which uses a store and had given up waiting for the gate.",
	},
	ServicesFailed: {
		"services_failed", "e23c93d0ecab4e7198e3ec020ce59d09", Error, noObject, "service of a store failed",
		"A service that uses a store could not be stopped or started.",
	},
	ProbeFailed: {
		"probe_failed", "336aa0c0a6c94ddbae4a2613cba6bce5", Error, noObject, "probe failed",
		"A probe did not find what it should, or not in time.",
	},
	ProbeRecovered: {
		"probe_recovered", "bbf376b4e525467381be7c74327c6ea5", Notice, noObject, "probe recovered",
		"A probe that failed succeeds again.",
	},
	ConditionChanged: {
		"condition_changed", "2755f500cb374bee8815fd697e922108", Notice, noObject, "condition changed",
		"A condition, one of those that /healthz lists, has another status than before.",
	},
	ProtectionChanged: {
		"protection_changed", "387ccb22332041b5b23984a761ae4ded", Notice, cryptsetup, "protection changed",
		"The keys protect the container against something else than before, or this is known for the first time: @LUKSMEDIAD_LEVEL@.",
	},
	RetryScheduled: {
		"retry_scheduled", "450cd6200cfb45c5aff1d4f4ef4cdb1d", Info, noObject, "retry scheduled",
		"What failed is tried again after a while.",
	},
	ControlRequest: {
		"control_request", "a38d082255e24e0aa63faae3dfe1ac7d", Info, noObject, "control request answered",
		"Somebody asked for @LUKSMEDIAD_OPERATION@ over the control socket: process @LUKSMEDIAD_PEER_PID@ of user " +
			"@LUKSMEDIAD_PEER_UID@.",
	},
	Failed: {
		"failed", "1c14bddd90cc402aa2d9fac97f78f66f", Error, noObject, "operation failed",
		"Something that luksmediad was asked to do, or does by itself, could not be done.",
	},
	EventsDropped: {
		"events_dropped", "daef4905018643f4a1a7941623296f7b", Warning, noObject, "events dropped",
		"The journal did not take events as fast as they came, or not at all. @LUKSMEDIAD_COUNT@ are missing before this one.",
	},
	Grown: {
		"grown", "3f2da2ab54234c74bb788b812d78859d", Notice, cryptsetup, "volume grown",
		"Container, mapping and filesystem are larger now. The stores were in use meanwhile.",
	},
	GrowFailed: {
		"grow_failed", "acf031a0f0ad4554af2c8108c2bafe46", Error, cryptsetup, "volume not grown",
		"Less is left in the volume than volume.auto_grow wants, and it could not be made larger. It is tried again after an hour.",
	},
	KeyslotRemoved: {
		"keyslot_removed", "8cb514e1c4754b5fbd51bf5ee1ae663d", Notice, cryptsetup, "keyslot removed",
		"One key less opens the container. Copies of its header from before still do with that key.",
	},
	KeyslotLeft: {
		"keyslot_left", "49653d12b9b1462f841941c562c8db63", Warning, cryptsetup, "keyslot left in doubt",
		"A change of keys was interrupted right when this keyslot was filled, so that it cannot be told from one that somebody else has " +
			"added since. It stays. If nobody knows of it, nobody has its key: luksmediad key remove N --foreign removes it.",
	},
	Resealed: {
		"resealed", "bc19fce536c547198a12c750fe063f97", Notice, cryptsetup, "key sealed anew",
		"The TPM had refused the key because the PCRs or its storage root key had changed, and another key source has opened the " +
			"volume. A new key was sealed to what the TPM says now, proven, and took the place of the old one.",
	},
	ResealFailed: {
		"reseal_failed", "7471eaed6b2e4b678d79db1be6ed0cee", Warning, cryptsetup, "key not sealed anew",
		"The TPM does not give the key any more, and no new one could be sealed. The volume is open; the next boot needs another " +
			"key source again.",
	},
	PinAccepted: {
		"pin_accepted", "2f5602d47e3040b5ac16bdd505400f1b", Notice, cryptsetup, "container accepted as it is",
		"Somebody has looked at how the container differs from what was recorded about it, and has had it recorded anew.",
	},
	ContainerAdopted: {
		"container_adopted", "8035cd306eed444cbd1a20f15c3eac65", Notice, cryptsetup, "container adopted",
		"A LUKS2 container that luksmediad did not make is now its volume. Its keyslots were left as they are.",
	},
	MoveBegun: {
		"move_begun", "1907700c738945d29295e509bb37ae88", Notice, noObject, "store begins to move in",
		"The files of store @LUKSMEDIAD_STORE@ are being copied into the volume. Its service runs meanwhile.",
	},
	CopyVerified: {
		"copy_verified", "10f9804d4ca84b8b85b9270b7e1e1b09", Info, noObject, "copy of a store verified",
		"Every entry of the copy of store @LUKSMEDIAD_STORE@ was compared. What was read was read past the page cache: from the device, directly, " +
			"or after its pages were dropped. The rest had been before.",
	},
	MovedIn: {
		"moved_in", "ae7213ead78245018f8f68bd96bd25e2", Notice, noObject, "store moved in",
		"Store @LUKSMEDIAD_STORE@ is in the volume now. The old files lie beside it in clear text until they are purged.",
	},
	MoveFailed: {
		"move_failed", "13ae68b09ce14afd9e5ce0f2ef7e8d76", Error, noObject, "store not moved in",
		"Store @LUKSMEDIAD_STORE@ could not be moved into the volume, or its service did not come up well on it.",
	},
	MovedBack: {
		"moved_back", "df0bdc94b7f845728b344f9b45eb2dad", Warning, noObject, "store moved back",
		"Store @LUKSMEDIAD_STORE@ lies in clear text outside the volume again. What had arrived in the volume was carried back.",
	},
	Purged: {
		"purged", "e7b92ca1d600480fbff70ef34479c8cf", Notice, noObject, "old files of a store purged",
		"The files that store @LUKSMEDIAD_STORE@ had in clear text were removed. Snapshots and backups may still hold them.",
	},
	Reloaded: {
		"reloaded", "b130c58264304cf8be38a4b1549cabf0", Notice, noObject, "configuration reloaded",
		"The daemon has checked its configuration and begun anew with it, as the same process. Nothing was unmounted, and nothing that " +
			"uses the volume was stopped.",
	},
	ReloadRefused: {
		"reload_refused", "28b5183ff4614b1ebdbfe44cef69eaf3", Error, noObject, "configuration not reloaded",
		"The daemon was asked to read its configuration again and goes on with the one that it has: the new one is wrong or cannot take effect " +
			"while the volume is open, or something else was under way.",
	},
}
