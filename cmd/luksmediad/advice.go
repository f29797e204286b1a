package main

import (
	"slices"

	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/pkg/health"
)

// advice is what to type about a reason of a condition that no error of a command has.
type advice struct {
	reason health.Reason
	next   string
}

// repairHeader is what to type about a header of which one copy is left. cryptsetup overwrites no backup.
const repairHeader = "cryptsetup luksHeaderBackup {container} --header-backup-file /root/header-$(date +%s).img && cryptsetup repair {container}"

const (
	// findHeaderCopy and headerCopy are what advice has where the name of the copy of the header that is kept is not known; see
	// [app.asTyped].
	findHeaderCopy = "ls " + config.StateDir + "/headers; "
	headerCopy     = config.StateDir + "/headers/FILE"
	// restoreHeader is what to type about a header of which neither copy is left, restoreWiped where nothing shows that there was one.
	restoreHeader = findHeaderCopy + "cryptsetup luksHeaderRestore {container} --header-backup-file " + headerCopy
	restoreWiped  = "file -s {container}; if it is the container, and its header is gone: " + restoreHeader
	// restoreKeyslot is what to type about a damaged keyslot: the key tells whether its copy is better.
	restoreKeyslot = findHeaderCopy + "cryptsetup open --test-passphrase --key-slot N {container} --header " + headerCopy +
		", and if that opens: cryptsetup luksHeaderRestore {container} --header-backup-file " + headerCopy +
		"; if it opens without --header only: mv " + headerCopy + " /root && luksmediad header backup"
)

const (
	// reviewHeader is what to type about what somebody has put into the header, backUpHeader about its copy.
	reviewHeader = "luksmediad key list; luksmediad key remove N --foreign, or if it is right: luksmediad header backup"
	backUpHeader = "luksmediad header backup"
)

// addSource is what to do about a key that no source of the configuration tries.
func addSource(source string) string {
	return "add below its unlock: the line - " + source
}

// stateAdvice is about conditions that the daemon decides without an error.
func stateAdvice() []advice {
	return []advice{
		{daemon.ReasonLocked, "luksmediad unlock"},
		{daemon.ReasonGateStopped, "luksmediad unlock"},
		{daemon.ReasonNotOpen, "luksmediad unlock"},
		{daemon.ReasonServicesStopped, "luksmediad unlock"},
		{daemon.ReasonServicesFailed, "systemctl --failed; luksmediad unlock"},
		{daemon.ReasonPlaintext, "luksmediad migrate {store_name}"},
		{daemon.ReasonMoving, "luksmediad migrate --attach"},
		{daemon.ReasonUnfinished, "luksmediad migrate {store_name}"},
		{daemon.ReasonPurging, "luksmediad migrate purge {store_name}"},
		{daemon.ReasonUnconfigured, "name the store in /etc/luksmediad/config.yaml again; systemctl reload luksmediad"},
		{daemon.ReasonKeySameDisk, "findmnt --target {keyfile}; move the key file to another disk and name it in /etc/luksmediad/config.yaml"},
		{daemon.ReasonProtectionUnknown, "lsblk --output NAME,TYPE,RM,MOUNTPOINTS; luksmediad config check"},
	}
}

// probeAdvice is about the closed sets of reasons of the probes.
func probeAdvice() []advice {
	const log = "journalctl -u luksmediad --since -1h"
	return []advice{
		{health.ReasonBackupMissing, backUpHeader},
		{health.ReasonBackupOld, backUpHeader},
		{health.ReasonCanaryKept, "ls -l {admin_token}; {synapse_log}"},
		{health.ReasonCipherChanged, "luksmediad header check"},
		{health.ReasonCipherMismatch, "luksmediad lock"},
		{health.ReasonContainerShared, closeOther},
		{health.ReasonContainerStale, "docker restart {subject}"},
		{health.ReasonCopiedOnWrite, "lsattr {container}; see btrfs in /usr/share/doc/luksmediad/operations.md"},
		{health.ReasonCopyDamaged, repairHeader},
		{health.ReasonDrift, "luksmediad key drift; luksmediad key add tpm2 --replace"},
		{health.ReasonEmergencyRO, kernelLog},
		{health.ReasonError, log},
		{health.ReasonFilesystemErrors, kernelLog + "; luksmediad lock && luksmediad unlock"},
		{health.ReasonFullSoon, "luksmediad grow --by 10GiB --dry-run"},
		{health.ReasonGrowFailed, "journalctl -u luksmediad --grep 'volume not grown' --lines 1; luksmediad grow --by 10GiB --dry-run"},
		{health.ReasonHeaderDamaged, restoreHeader},
		{health.ReasonHeaderRefused, "luksmediad header check"},
		{health.ReasonHole, log},
		{health.ReasonIO, kernelLog},
		{health.ReasonKeyFailed, "luksmediad key test"},
		{health.ReasonKeyslotDamaged, restoreKeyslot},
		{health.ReasonKeyslotMissing, "luksmediad key list"},
		{health.ReasonKeyslotUnknown, reviewHeader},
		{health.ReasonLocalStorageOff, "grep enable_local_media_storage {homeserver}"},
		{health.ReasonLockoutNear, "tpm2_getcap properties-variable"},
		{health.ReasonLowInodes, "df -i {root}; luksmediad grow --by 10GiB --dry-run"},
		{health.ReasonLowSpace, "luksmediad grow --by 10GiB --dry-run"},
		{health.ReasonMagicMissing, "file -s {container}"},
		{health.ReasonNoInodes, "df -i {root}; luksmediad grow --by 10GiB --dry-run"},
		{health.ReasonNoSpace, "df -h {root}; luksmediad grow --by 10GiB --dry-run"},
		{health.ReasonNotImage, "{synapse_log}"},
		{health.ReasonNotLUKS2, restoreWiped},
		{health.ReasonNotMounted, "luksmediad unlock"},
		{health.ReasonNotMovedIn, "luksmediad migrate {store_name}"},
		{health.ReasonNotOnVolume, "{synapse_description}"},
		{health.ReasonNotRandom, "luksmediad lock"},
		{health.ReasonOneWayIn, "luksmediad key list; luksmediad key add recovery"},
		{health.ReasonOriginalGone, kernelLog},
		{health.ReasonPinMismatch, "luksmediad key pin"},
		{health.ReasonPlaintext, "luksmediad lock"},
		{health.ReasonPlaintextCopy, "grep -A9 -e media_storage_providers -e backup_media_store_path {homeserver}"},
		{health.ReasonPodmanStale, "podman restart {subject}"},
		{health.ReasonProcessStale, "systemctl restart {subject}"},
		{health.ReasonReadOnly, kernelLog},
		{health.ReasonRefused, "{synapse_log}"},
		{health.ReasonShutdown, kernelLog},
		{health.ReasonStale, "systemctl status luksmediad"},
		{health.ReasonSynapseBlocked, letThrough},
		{health.ReasonSynapseUnreachable, "{synapse_state}"},
		{health.ReasonTimeout, kernelLog},
		{health.ReasonTokenUnknown, reviewHeader},
		{health.ReasonUnauthorized, checkToken},
		{health.ReasonUnproven, "luksmediad key test --passphrase-file -"},
		{health.ReasonUnreadable, kernelLog},
		{health.ReasonUploadsOnDisk, "give container {subject} a tmpfs at /tmp (Compose: tmpfs: [/tmp]) and recreate it"},
	}
}

// lateAdvice is about the probes that wait for something else than a disk when they are not done in time.
func lateAdvice() map[health.Code]string {
	return map[health.Code]string{
		health.Containers: "systemctl status docker.service",
		health.Keys:       "luksmediad key test",
		health.Thumbnail:  "{synapse_log}",
	}
}

// advise says what to type about a condition that does not hold, by its reason: that of its probe, or the class of the
// error in a step of the lifecycle.
func advise(code health.Code, reason health.Reason) string {
	if late := lateAdvice()[code]; late != "" && reason == health.ReasonTimeout {
		return late
	}
	if reasons := health.Reasons(code); slices.Contains(reasons, reason) || reasons != nil && reason == health.ReasonStale {
		return find(probeAdvice(), reason)
	}
	if code == health.Configuration && reason == classConfig {
		return "luksmediad config check; systemctl reload luksmediad"
	}
	for _, h := range hints() {
		if h.word == string(reason) {
			return h.next
		}
	}
	if next := find(stateAdvice(), reason); next != "" {
		return next
	}
	return find(probeAdvice(), reason) // a step has failed with an error of the system
}

func find(rows []advice, reason health.Reason) string {
	for _, row := range rows {
		if row.reason == reason {
			return row.next
		}
	}
	return ""
}
