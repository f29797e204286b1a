package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"luksmediad/internal/api"
	"luksmediad/internal/boot"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/state"
	"luksmediad/internal/synapse"
	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// hint is all the advice about one class of error: the word by which metrics, journal and API call it, the exit code,
// and what to type next.
type hint struct {
	class error
	word  string
	exit  int
	next  string
}

// hints lists the classes; the first that an error is of counts, so what wraps others stands above them.
func hints() []hint {
	return []hint{
		{context.Canceled, "interrupted", exitInterrupted, ""},
		{unlock.ErrNoKeyFits, "no_key_fits", exitNoKey, unlockByHand},
		{volume.ErrConfirmation, "not_confirmed", exitFailed, ""},
		{errConfigGone, "config_gone", exitGateClosed, "put " + config.DefaultPath + " back from a backup; systemctl start luksmediad.service docker.service"},
		{errNotRoot, "not_root", exitFailed, retryAsRoot},
		{errGateClosed, "gate_closed", exitGateClosed, "luksmediad status"},

		{errMoveNotBegun, "move_not_begun", exitFailed, "journalctl -u luksmediad-migrate --since -5min"},
		{daemon.ErrReloadLater, "reload_later", exitBusy, "luksmediad status; systemctl reload luksmediad"},
		{daemon.ErrVolumeOpen, "volume_open", exitRefused, "systemctl stop luksmediad-gate.service; luksmediad gate close; systemctl reload luksmediad; luksmediad unlock"},
		{errOtherVolume, "other_volume", exitRefused, "systemctl cat luksmediad; or, if the daemon has this configuration: systemctl reload luksmediad"},
		{errNoReload, "no_reload", exitFailed, "systemctl restart luksmediad"},
		{errReloadUnheard, "reload_unheard", exitFailed, "journalctl -u luksmediad --since -1h"},
		{state.ErrBusy, "busy", exitBusy, "luksmediad status"},
		{api.ErrForeign, "socket_foreign", exitRefused, "ls -ld /run/luksmediad /run/luksmediad/control.sock"},
		{api.ErrNotLoopback, "not_loopback", exitUsage, "luksmediad config check"},
		{api.ErrUnwanted, "socket_foreign", exitRefused, "systemctl cat luksmediad.socket"},
		{api.ErrUnauthenticated, "web_config", exitRefused, "luksmediad config check; see web_config in /usr/share/doc/luksmediad/operations.md"},
		{api.ErrAddressInUse, "address_in_use", exitFailed, "ss --listening --tcp --numeric --processes"},
		{api.ErrInUse, "busy", exitBusy, "systemctl status luksmediad"},
		{daemon.ErrHandover, wordBeginsAnew, exitBusy, "luksmediad status"},
		{daemon.ErrPhase, "busy", exitBusy, "luksmediad status"},
		{daemon.ErrServicesRunning, "services_running", exitBusy, "luksmediad lock"},
		{api.ErrNoDaemon, "no_daemon", exitFailed, "systemctl start luksmediad"},
		{health.ErrNoProbe, "no_probe", exitNotSetUp, "luksmediad config check"},
		{synapse.ErrUnreachable, "synapse_unreachable", exitFailed, "{synapse_state}"},
		{synapse.ErrBlocked, "synapse_blocked", exitFailed, letThrough},
		{synapse.ErrUnauthorized, "unauthorized", exitFailed, checkToken},
		{synapse.ErrNotImage, "not_image", exitFailed, "{synapse_log}"},
		{synapse.ErrRefused, "refused", exitFailed, "{synapse_log}"},
		{synapse.ErrNoSystemd, "no_systemd", exitFailed, "systemctl is-system-running"},
		{synapse.ErrNoSuchUnit, "no_unit", exitFailed, "systemctl daemon-reload"},
		{synapse.ErrUnitExists, "busy", exitBusy, "luksmediad status"},
		{synapse.ErrNoDocker, "no_docker", exitFailed, "systemctl status docker.service"},
		{synapse.ErrNoContainer, "no_container", exitFailed, "docker ps --all"},
		{synapse.ErrContainers, "containers_ambiguous", exitFailed, "docker ps --all"},
		{synapse.ErrAutoRemove, "container_auto_remove", exitRefused, nameUnit},
		{synapse.ErrDocker, "docker_refused", exitFailed, "docker ps --all"},
		{synapse.ErrJobFailed, "unit_failed", exitFailed, "systemctl --failed"},

		{config.ErrMissing, "config_missing", exitNotSetUp, "sudoedit " + config.DefaultPath},
		{config.ErrUnsafe, "config_unsafe", exitRefused, "chown root:root " + config.DefaultPath + " && chmod 0644 " + config.DefaultPath},
		{volume.ErrNotSetUp, "not_set_up", exitNotSetUp, "luksmediad create"},
		{volume.ErrUnfinished, "unfinished", exitNotSetUp, "luksmediad create"},
		{volume.ErrKeysChanged, "keys_changed", exitRefused, "luksmediad key list"},
		{volume.ErrKeysUnfinished, "keys_unfinished", exitFailed, "luksmediad key list; repeat the luksmediad key add or key remove that was interrupted"},
		{volume.ErrAdopting, "adopting", exitNotSetUp, "luksmediad adopt"},
		{volume.ErrAlreadySetUp, "already_set_up", exitRefused, "luksmediad status; see Begin anew in /usr/share/doc/luksmediad/operations.md"},
		{volume.ErrSettings, "settings", exitRefused, editConfig},
		{volume.ErrContainerMissing, "container_missing", exitNotSetUp, "ls -l {container}"},
		{boot.ErrNotInstalled, "unit_missing", exitNotSetUp, "make install in the source directory; systemctl enable luksmediad.service"},
		{boot.ErrMasked, "unit_masked", exitNotSetUp, "systemctl unmask luksmediad.service luksmediad-gate.service"},
		{boot.ErrNotStarted, "not_started", exitNotSetUp, "systemctl enable luksmediad.service"},
		{boot.ErrNoUnit, "unit_unknown", exitDegraded, "systemctl cat {units} luksmediad-gate.service"},
		{boot.ErrUngated, "ungated", exitDegraded, holdBack},
		{boot.ErrGone, "gone_at_boot", exitNotSetUp, "findmnt --target {file}"},
		{boot.ErrDoubtful, "doubtful_at_boot", exitDegraded, "findmnt --target {file}"},
		{volume.ErrContainerReadOnly, "container_read_only", exitRefused, "lsattr {container}; findmnt --target {container}"},
		{volume.ErrContainerForeign, "container_foreign", exitRefused, "file -s {container}"},
		{volume.ErrContainerShared, "container_shared", exitBusy, closeOther},
		{volume.ErrLoopForeign, "loop_foreign", exitRefused, "losetup --list --associated {container}"},
		{volume.ErrContainerSparse, "container_sparse", exitRefused, "fallocate --posix --length $(stat --format %s {container}) {container}"},
		{volume.ErrFilesystemForeign, "filesystem_foreign", exitRefused, "luksmediad status"},
		{volume.ErrEmergencyReadOnly, "emergency_ro", exitFailed, kernelLog},
		{volume.ErrShutdown, "filesystem_shutdown", exitFailed, kernelLog},
		{volume.ErrShrink, "shrink", exitRefused, "luksmediad status"},
		{volume.ErrNoSize, "no_size", exitUsage, "luksmediad grow --by SIZE, or --to SIZE"},
		{volume.ErrGrowDevice, "grow_device", exitUsage, "luksmediad grow"},
		{volume.ErrStoreNotEmpty, "store_not_empty", exitRefused, clearStore},
		{volume.ErrRootNotEmpty, "root_not_empty", exitRefused, "ls -la {root}; mv {root} {root}.clear && luksmediad unlock"},
		{volume.ErrStoreGone, "store_gone", exitRefused, "findmnt --target {store}; mount its disk, or if it has no files any more: mkdir -p {store} && touch {store}/.empty && chown {owner} {store} {store}/.empty; luksmediad unlock"},
		{volume.ErrGuarded, "guarded", exitRefused, "ls -l /var/lib/luksmediad; luksmediad adopt, or if no volume belongs there: chattr -i {store}"},
		{volume.ErrMountForeign, "mount_foreign", exitRefused, mountHigher},

		{volume.ErrStoreUnclaimed, "store_unclaimed", exitRefused, "luksmediad adopt --store {store_name}=DIRECTORY, where . is everything"},
		{volume.ErrStoreDirectory, "store_directory", exitRefused, "luksmediad adopt --dry-run --store {store_name}=DIRECTORY"},

		{volume.ErrCipherChanged, "cipher_changed", exitRefused, "luksmediad header check"},
		{volume.ErrKeyslotUnknown, "keyslot_unknown", exitVerify, reviewHeader},
		{volume.ErrTokenUnknown, "token_unknown", exitVerify, reviewHeader},
		{volume.ErrBackupMissing, "header_backup_missing", exitFailed, backUpHeader},
		{volume.ErrBackupOld, "header_backup_old", exitFailed, backUpHeader},
		{transfer.ErrSync, "writes_lost", exitVerify, kernelLog + "; luksmediad migrate {store_name}"},
		{volume.ErrCoarseTimes, "coarse_times", exitRefused, "dumpe2fs -h $(findmnt --noheadings --output SOURCE {root}) | grep 'Inode size'; with 128 it takes another volume"},
		{volume.ErrNoManifest, "manifest_corrupt", exitRefused, removeByHand},
		{volume.ErrNoExchange, "no_exchange", exitRefused, "findmnt --target {store}/.."},
		{volume.ErrObstacles, "store_obstacles", exitRefused, findObstacles},
		{volume.ErrVolumeFull, "volume_full", exitFailed, "luksmediad grow --by SIZE"},
		{volume.ErrStoreThere, "store_there", exitRefused, lookInVolume},
		{volume.ErrDiskFull, "disk_full", exitFailed, "df -h {store}/.."},
		{volume.ErrUnhealthy, "service_unwell", exitFailed, "journalctl -u luksmediad --since -1h; {service_log}"},
		{volume.ErrInUse, "store_in_use", exitBusy, "stop what is named, and type the same command once more"},
		{errPathUsed, "store_in_use", exitBusy, stopUser + "; luksmediad create"},
		{volume.ErrMoveUnclear, "move_unclear", exitRefused, "ls -la {store}; luksmediad migrate rollback {store_name}"},
		{volume.ErrTrial, "move_unfinished", exitRefused, "luksmediad migrate {store_name}"},
		{volume.ErrReturning, "move_returning", exitRefused, "luksmediad migrate rollback {store_name}"},
		{volume.ErrNoWayBack, "no_way_back", exitRefused, "luksmediad status"},
		{volume.ErrNothingOld, "nothing_old", exitRefused, "luksmediad status"},
		{volume.ErrOldMissing, "old_missing", exitRefused, "ls -la {store}/..; see \"Purging\" in /usr/share/doc/luksmediad/operations.md"},
		{volume.ErrOldForeign, "old_foreign", exitRefused, "mv what is named away from the old files, and luksmediad migrate rollback {store_name} once more"},
		{volume.ErrLeftOver, "left_over", exitRefused, "look at what is left, and luksmediad migrate purge {store_name} once more"},
		{volume.ErrWhichStore, "which_store", exitUsage, "luksmediad status"},
		{errConfigChanged, "config_changed", exitRefused, "systemctl reload luksmediad"},
		{errMoveGone, "move_gone", exitFailed, "luksmediad migrate"},
		{transfer.ErrMismatch, "copy_differs", exitVerify, "luksmediad migrate {store_name}"},
		{transfer.ErrChanging, "store_changes", exitBusy, "stop what changes the file, such as a clean-up job, and type the same command once more"},
		{transfer.ErrForeign, "copy_foreign", exitRefused, "move what is named out of {root}/stores/{store_name}; luksmediad migrate {store_name}, or luksmediad migrate rollback {store_name}"},
		{transfer.ErrRefused, "store_obstacles", exitRefused, findObstacles},
		{transfer.ErrNoSpace, "volume_full", exitFailed, "luksmediad grow --by SIZE"},
		{transfer.ErrStateFull, "volume_full", exitFailed, "luksmediad grow --by SIZE"},
		{transfer.ErrUnsupported, "copy_unsupported", exitRefused, "getfattr -d -m - -R {store}"},
		{transfer.ErrRead, "store_unreadable", exitFailed, kernelLog + "; if a file is named, restore it or move it out of {store}, and type the same command once more"},
		{transfer.ErrWrite, "copy_unwritable", exitFailed, kernelLog},
		{transfer.ErrNewer, "state_newer", exitRefused, "install the newer luksmediad again"},
		{transfer.ErrCorrupt, "manifest_corrupt", exitRefused, removeByHand},

		{volume.ErrHeaderDamaged, string(health.ReasonCopyDamaged), exitRefused, repairHeader},
		{volume.ErrKeyslotDamaged, "keyslot_damaged", exitRefused, restoreKeyslot},
		{volume.ErrKeyslotForeign, "keyslot_foreign", exitRefused, "luksmediad key list; luksmediad key remove N --foreign"},
		{volume.ErrKeyslotMissing, "keyslot_missing", exitFailed, "luksmediad key list"},
		{volume.ErrKeyslotsFull, "keyslots_full", exitFailed, "luksmediad key list; luksmediad key remove N"},
		{volume.ErrWeaker, "weaker", exitRefused, "luksmediad key list; luksmediad key add tpm2 --replace --pcrs PCRS --pin"},
		{volume.ErrOnlyKeyslot, "only_keyslot", exitRefused, "luksmediad key add recovery"},
		{volume.ErrLastWayIn, "last_way_in", exitRefused, "luksmediad key test; luksmediad key add recovery"},
		{volume.ErrClevis, "clevis_not_bound", exitFailed, "echo test | clevis encrypt PIN CONFIG | clevis decrypt"},

		{luks2.ErrPinMismatch, "pin_mismatch", exitRefused, "luksmediad key pin"},
		{luks2.ErrRefused, "header_refused", exitRefused, "luksmediad header check"},
		{luks2.ErrLUKS1, "luks1", exitRefused, "file -s {container}"},
		{luks2.ErrNotLUKS2, "not_luks2", exitRefused, restoreWiped},
		{luks2.ErrDamaged, "header_damaged", exitFailed, restoreHeader},

		{tpm2.ErrAbsent, "tpm_absent", exitNoKey, "ls /dev/tpmrm*"},
		{tpm2.ErrBusy, "tpm_busy", exitNoKey, "fuser -v /dev/tpm*"},
		{tpm2.ErrLockout, "tpm_lockout", exitNoKey, "tpm2_getcap properties-variable"},
		{tpm2.ErrPolicy, "tpm_policy", exitNoKey, sealAnew},
		{tpm2.ErrPCRChanged, "tpm_pcr_changed", exitNoKey, unlockByHand},
		{tpm2.ErrPIN, "tpm_pin", exitNoKey, unlockByHand},
		{tpm2.ErrPINNeeded, "pin_needed", exitNoKey, unlockByHand},
		{tpm2.ErrSignature, "tpm_signature", exitNoKey, "ls -l /run/systemd/tpm2-pcr-signature.json"},
		{tpm2.ErrSRKMismatch, "tpm_srk_mismatch", exitNoKey, sealAnew},
		{tpm2.ErrSRKForeign, "tpm_srk_foreign", exitRefused, "tpm2_readpublic -c 0x81000001"},
		{tpm2.ErrTimeout, "tpm_timeout", exitNoKey, "journalctl -k --grep tpm"},
		{tpm2.ErrBankUnavailable, "tpm_bank", exitRefused, "tpm2_getcap pcrs"},
		{tpm2.ErrPCRUnused, "tpm_pcr_unused", exitRefused, "tpm2_pcrread"},
		{tpm2.ErrToken, "token_malformed", exitNoKey, unlockByHand},
		{tpm2.ErrUnsupported, "token_unsupported", exitNoKey, unlockByHand},
		{tpm2.ErrEventLog, "event_log", exitFailed, "ls -l /sys/kernel/security/tpm*/binary_bios_measurements"},
		{tpm2.ErrFailed, "tpm_failed", exitNoKey, "journalctl -k --grep tpm"},
		{unlock.ErrKeyFileMissing, "key_missing", exitNoKey, unlockByHand},
		{unlock.ErrKeyFileModes, "key_modes", exitRefused, mountPrivate},
		{unlock.ErrKeyFileUnsafe, "key_unsafe", exitRefused, "ls -l {file}; chown root:root {file} && chmod 0400 {file}"},
		{unlock.ErrCredentialMissing, "credential_missing", exitNoKey, "systemctl cat luksmediad; ls -l /run/credentials/luksmediad.service"},
		{unlock.ErrCredentialUnsafe, "credential_unsafe", exitRefused, "ls -l /run/credentials/luksmediad.service"},
		{unlock.ErrToken, "token_malformed", exitNoKey, unlockByHand},
		{unlock.ErrTokenUnsupported, "token_unsupported", exitNoKey, unlockByHand},
		{unlock.ErrClevisMissing, "clevis_missing", exitNoKey, "apt install clevis clevis-tpm2"},
		{unlock.ErrTangUnreachable, "tang_unreachable", exitNoKey, "systemctl cat luksmediad; luksmediad key test"},
		{unlock.ErrClevis, "clevis_failed", exitNoKey, "luksmediad key test"},
		{secret.ErrEmpty, "key_empty", exitNoKey, unlockByHand},
		{secret.ErrTooLarge, "key_too_large", exitNoKey, unlockByHand},
		{secret.ErrNoMemory, "no_locked_memory", exitFailed, "ulimit -l unlimited"},
		{unlock.ErrProgram, "command_failed", exitNoKey, "luksmediad key test"},
		{unlock.ErrNoAnswer, "no_answer", exitNoKey, unlockByHand},
		{unlock.ErrNoKeyslot, "no_keyslot", exitNoKey, unlockByHand},
		{unlock.ErrKeyslotMemory, "keyslot_memory", exitNoKey, "free --mebi; cryptsetup luksDump {container}"},
		{unlock.ErrWrongKey, "wrong_key", exitNoKey, unlockByHand},
		{unlock.ErrNoDeviceMapper, "no_device_mapper", exitFailed, "modprobe dm-crypt"},
		{unlock.ErrForeignMapping, "mapping_foreign", exitRefused, "dmsetup table"},
		{unlock.ErrMappingBusy, "in_use", exitBusy, "fuser -vm {stores}"},
		{unlock.ErrCryptsetupTooOld, "cryptsetup_too_old", exitFailed, "apt install cryptsetup-bin"},

		{mount.ErrPrivateNamespace, "private_namespace", exitRefused, "systemctl cat luksmediad"},
		{mount.ErrFilesystemDamaged, "filesystem_damaged", exitVerify, "luksmediad lock && cryptsetup open {container} rescue && {fsck} /dev/mapper/rescue; cryptsetup close rescue && luksmediad unlock"},
		{mount.ErrBusy, "in_use", exitBusy, "fuser -vm {stores}"},
		{mount.ErrNoSpace, "no_space", exitFailed, "df -h"},
		{mount.ErrSymlink, "symlink", exitRefused, "readlink -f {store}"},
		{mount.ErrNotDirectory, "not_directory", exitRefused, "ls -ld {store}"},
		{mount.ErrNotEmpty, "store_not_empty", exitRefused, clearStore},
		{mount.ErrForeign, "mount_foreign", exitRefused, "lsblk -f"},
		{mount.ErrMounted, "already_mounted", exitRefused, mountHigher},
		{mount.ErrUnguarded, "unguarded", exitRefused, "lsattr -d {store}"},
		{mount.ErrNotMounted, "not_mounted", exitFailed, unlockByHand},
		{mount.ErrAttached, "already_attached", exitBusy, "losetup --list"},
		{mount.ErrNoLoop, "no_loop", exitFailed, "modprobe loop; losetup --list"},
		{mount.ErrSparse, "container_sparse", exitRefused, "fallocate --posix --length $(stat --format %s {container}) {container}"},
		{mount.ErrSync, "sync_failed", exitFailed, kernelLog},
		{mount.ErrReadOnly, "read_only", exitFailed, kernelLog},
		{mount.ErrUnsupported, "unsupported", exitFailed, "findmnt --real --output TARGET,FSTYPE; uname -r"},
		{mount.ErrUnverified, "unverified", exitVerify, "findmnt; losetup --list"},

		{command.ErrOutputTooLarge, "program_output", exitFailed, "journalctl -u luksmediad --since -1h"},
		{command.ErrStuck, "program_stuck", exitFailed, kernelLog},
		{command.ErrNotFound, "program_missing", exitFailed, "apt install cryptsetup-bin e2fsprogs xfsprogs"},
		{state.ErrNewer, "state_newer", exitRefused, "install the newer luksmediad again"},
		{state.ErrOlder, "state_older", exitRefused, "install the luksmediad that made the volume"},
		{state.ErrNoSpace, "state_full", exitFailed, "df -h /var/lib/luksmediad; df -i /var/lib/luksmediad"},
		{state.ErrUnsafe, "state_unsafe", exitRefused, ownState},
		{state.ErrCorrupt, "state_corrupt", exitRefused, "ls -l /var/lib/luksmediad"},
		{unlock.ErrCryptsetup, "cryptsetup", exitFailed, "journalctl -u luksmediad"},
		{context.DeadlineExceeded, "timeout", exitFailed, "luksmediad status"},
		{fs.ErrPermission, "permission", exitFailed, retryAsRoot},
		{fs.ErrNotExist, "not_found", exitFailed, "luksmediad config check"},
	}
}

// explain gives the class of an error and what follows from it.
func explain(err error) api.Explanation {
	if problem, ok := errors.AsType[*api.ProblemError](err); ok {
		return api.Explanation{Class: problem.Class, Next: problem.Next, ExitCode: problem.ExitCode}
	}
	if _, ok := errors.AsType[*config.Error](err); ok {
		code := exitUsage
		if _, ok := errors.AsType[startError](err); ok {
			code = exitCannotStart
		}
		return api.Explanation{Class: classConfig, Next: editConfig, ExitCode: code}
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return api.Explanation{Class: classUsage, Next: "luksmediad --help", ExitCode: exitUsage}
	}
	for _, h := range hints() {
		if errors.Is(err, h.class) {
			return api.Explanation{Class: h.word, Next: h.next, ExitCode: h.exit}
		}
	}
	if reason := health.ReasonOf(err); reason != health.ReasonError { // of a probe, or by the number of the system's error
		return api.Explanation{Class: string(reason), Next: find(probeAdvice(), reason), ExitCode: exitFailed}
	}
	return api.Explanation{Class: classOther, ExitCode: exitFailed}
}

// ahead is what to type about a failure that is met while the volume may well be open: then to unlock it is no help.
func ahead(explained api.Explanation) string {
	if explained.Next != unlockByHand {
		return explained.Next
	}
	return cmp.Or(aheadAdvice()[explained.Class], "luksmediad key list")
}

// aheadAdvice has the words of hints for which there is more to look at than the keys.
func aheadAdvice() map[string]string {
	const provePIN = "luksmediad key test --pin-file FILE"
	return map[string]string{
		"tpm_pcr_changed": "luksmediad key drift",
		"tpm_pin":         provePIN,
		"pin_needed":      provePIN,
		"key_missing":     lookAtFile,
		"key_empty":       lookAtFile,
		"key_too_large":   lookAtFile,
	}
}

// onceMore is the command that goes on with what was interrupted. The store is empty where it was not named.
func onceMore(action api.OperationAction, store string) string {
	command := "luksmediad migrate "
	if action == api.OperationActionRollback || action == api.OperationActionPurge {
		command += string(action) + " "
	}
	return strings.TrimSuffix(command+store, " ")
}

const (
	// unlockByHand is the advice wherever no key fits.
	unlockByHand = "luksmediad unlock"
	// kernelLog is the advice wherever a disk or the kernel has failed.
	kernelLog = "journalctl -k --priority warning --since -1h"
	// findObstacles is the advice about a store that cannot be moved: what is no file, directory or link, runs as its owner or group, or has
	// links outside; then what must not be renamed.
	findObstacles = `find {store} -xdev \( ! -type f ! -type d ! -type l -o -type f -perm /6000 -o -type f -links +1 \) -ls; ` +
		`lsattr -aR {store} | grep -E '^[^ ]*[ia][^ ]* '; findmnt --list --output TARGET | grep -F {store}`
	// closeOther is the advice about a container that something else has open, too.
	closeOther = "losetup --list --associated {container}; dmsetup ls --tree; umount what is not luksmediad's, and cryptsetup close NAME"
	// stopUser is the advice about what could write where a store is going to be mounted; the error knows the command.
	stopUser = "docker stop NAME"
	// removeByHand is the advice where luksmediad does not know any more what the old files were.
	removeByHand = "ls -ld {store}/../.*.luksmediad-*/*; if all is well in the volume: rm -r the old files there, and luksmediad migrate purge {store_name}"
	// clearStore is the advice about files in the place of a store, from which access may have been taken.
	clearStore = "ls -la {store}; mv {store} {store}.clear && luksmediad unlock; to read what is there: chown OWNER {store}.clear && chmod 0750 {store}.clear"
	// lookInVolume is the advice about files of a store in the volume that no move has put there.
	lookInVolume = "ls -la {root}/stores/{store_name} {store}; if what is in the volume is old: " +
		"mv {root}/stores/{store_name} {root}/{store_name}.old && luksmediad migrate {store_name}; if it is not, see \"Moving in\" in /usr/share/doc/luksmediad/operations.md"
	// nameUnit is the advice about a container that another program makes anew at each start.
	nameUnit = "sudoedit " + config.DefaultPath + ", and there service: {systemd: UNIT} of the unit that runs the container; luksmediad config check; systemctl reload luksmediad"
	// mountHigher is the advice about a mount in the place of a store, which cannot be renamed.
	mountHigher = "findmnt {store}; if that is a disk of the store's own: mount it one folder higher, so that the store is a folder in it"
	// checkToken is the advice about a token that Synapse does not take, or that cannot be used.
	checkToken = "chmod o= {token}; grep as_token the registration file; compare with {token}"
	// letThrough is the advice where the unit, or a firewall, keeps Synapse away.
	letThrough = "systemctl edit luksmediad, and there [Service] and IPAddressAllow= the addresses of {synapse_url} and, if that is a name, of the name server; systemctl restart luksmediad"
	// retryAsRoot is the advice to whoever may not do it.
	retryAsRoot = "sudo luksmediad …"
	// editConfig is the advice about a configuration that is wrong.
	editConfig = "sudoedit " + config.DefaultPath + "; luksmediad config check"
	// lookAtFile is the advice about a file that is no key.
	lookAtFile = "ls -l {file}"
	// mountPrivate is the advice about a key file whose modes are those of the mount. A remount does not change them (fat_reconfigure in
	// linux/fs/fat/inode.c, exfat_reconfigure in linux/fs/exfat/super.c).
	mountPrivate = "sudoedit /etc/fstab, and there fmask=0177,dmask=0077 among the options; systemctl daemon-reload; " +
		"at=$(findmnt --noheadings --output TARGET --target {file}) && umount $at && mount $at"
	// ownState is the advice about state that others can change. What is below it is left alone: there the volume is mounted.
	ownState = "chown root:root /var/lib/luksmediad /var/lib/luksmediad/*.json && chmod go-w /var/lib/luksmediad /var/lib/luksmediad/*.json"
	// holdBack is the advice about units that are not held back: the drop-in of docker.service, which make install puts there.
	holdBack = "for unit in {units}; do install -D -m 0644 /usr/lib/systemd/system/docker.service.d/luksmediad.conf /etc/systemd/system/$unit.d/luksmediad.conf; done; " +
		"systemctl daemon-reload"
	// sealAnew is the advice about a key that the TPM does not give any more. Where nothing else opens the volume either, no key
	// fits, and the advice is unlockByHand.
	sealAnew = "luksmediad key add tpm2 --replace"
)

const (
	// classConfig is the word for what is wrong in the configuration.
	classConfig = "config"
	// classUsage is the word for a command line that cannot be understood.
	classUsage = "usage"
	// wordBeginsAnew is the word for a daemon that reloads at this moment.
	wordBeginsAnew = "begins_anew"
	// classOther is the word for what is in no class.
	classOther = "other"
)

// keyWords are the words that explain can give for a key source that failed: a closed set for a metric's label.
func keyWords() []string {
	words := []string{classOther, string(health.ReasonIO), string(health.ReasonNoSpace), string(health.ReasonReadOnly), string(health.ReasonTimeout)}
	refused := []string{"tpm_srk_foreign", "tpm_bank", "tpm_pcr_unused", "key_modes", "key_unsafe", "credential_unsafe"}
	for _, h := range hints() {
		if (h.exit == exitNoKey || slices.Contains(refused, h.word)) && !slices.Contains(words, h.word) {
			words = append(words, h.word)
		}
	}
	return words
}
