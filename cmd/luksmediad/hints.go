package main

import (
	"context"
	"errors"
	"io/fs"

	"luksmediad/internal/api"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/state"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// The exit codes are an interface: documented, never reused.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitDegraded    = 3
	exitNotSetUp    = 10
	exitBusy        = 11
	exitNoKey       = 12
	exitVerify      = 13
	exitGateClosed  = 14
	exitRefused     = 15
	exitInterrupted = 130
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
		{volume.ErrConfirmation, "not_confirmed", exitFailed, ""},
		{errNotRoot, "not_root", exitFailed, "sudo luksmediad …"},
		{errGateClosed, "gate_closed", exitGateClosed, "curl -s 'http://127.0.0.1:10165/healthz?verbose'"},

		{state.ErrBusy, "busy", exitBusy, "luksmediad status"},
		{context.DeadlineExceeded, "timeout", exitFailed, "luksmediad status"},
		{api.ErrInUse, "busy", exitBusy, "systemctl status luksmediad"},
		{daemon.ErrPhase, "busy", exitBusy, "luksmediad status"},
		{daemon.ErrServicesRunning, "services_running", exitBusy, "luksmediad lock"},
		{api.ErrNoDaemon, "no_daemon", exitFailed, "systemctl start luksmediad"},
		{synapse.ErrNoSystemd, "no_systemd", exitFailed, "systemctl is-system-running"},
		{synapse.ErrJobFailed, "unit_failed", exitFailed, "systemctl --failed"},

		{volume.ErrNotSetUp, "not_set_up", exitNotSetUp, "luksmediad create"},
		{volume.ErrUnfinished, "unfinished", exitNotSetUp, "luksmediad create"},
		{volume.ErrAlreadySetUp, "already_set_up", exitRefused, "luksmediad status"},
		{volume.ErrSettings, "settings", exitRefused, "luksmediad config check"},
		{volume.ErrContainerMissing, "container_missing", exitNotSetUp, "ls -l the path, and mount the disk it lies on"},
		{volume.ErrContainerForeign, "container_foreign", exitRefused, "file -s the path; choose another volume.container, or move that file away"},
		{volume.ErrContainerSparse, "container_sparse", exitRefused, "fallocate --length the size of the container"},
		{volume.ErrFilesystemForeign, "filesystem_foreign", exitRefused, "luksmediad status"},
		{volume.ErrStoreNotEmpty, "store_not_empty", exitRefused, "ls -la the path; move these files away, they are in clear text"},
		{volume.ErrMountForeign, "mount_foreign", exitRefused, "findmnt the path"},

		{luks2.ErrPinMismatch, "pin_mismatch", exitRefused, "cryptsetup luksUUID the container; put the recorded container back"},
		{luks2.ErrRefused, "header_refused", exitRefused, "cryptsetup luksDump --dump-json-metadata a copy of the container"},
		{luks2.ErrNotLUKS2, "not_luks2", exitRefused, "cryptsetup isLuks --verbose the container"},
		{luks2.ErrDamaged, "header_damaged", exitFailed, "cryptsetup luksHeaderRestore the container from /var/lib/luksmediad/headers"},

		{unlock.ErrNoKeyFits, "no_key_fits", exitNoKey, "luksmediad unlock"},
		{tpm2.ErrAbsent, "tpm_absent", exitNoKey, "ls /dev/tpmrm*"},
		{tpm2.ErrBusy, "tpm_busy", exitNoKey, "fuser -v /dev/tpm*"},
		{tpm2.ErrLockout, "tpm_lockout", exitNoKey, "tpm2_getcap properties-variable"},
		{tpm2.ErrPolicy, "tpm_policy", exitNoKey, "luksmediad unlock"},
		{tpm2.ErrSRKMismatch, "tpm_srk_mismatch", exitNoKey, "luksmediad unlock"},
		{tpm2.ErrSRKForeign, "tpm_srk_foreign", exitRefused, "tpm2_readpublic -c 0x81000001"},
		{tpm2.ErrTimeout, "tpm_timeout", exitNoKey, "journalctl -k --grep tpm"},
		{tpm2.ErrBankUnavailable, "tpm_bank", exitRefused, "tpm2_getcap pcrs"},
		{tpm2.ErrPCRUnused, "tpm_pcr_unused", exitRefused, "tpm2_pcrread"},
		{tpm2.ErrToken, "token_malformed", exitNoKey, "luksmediad unlock"},
		{tpm2.ErrUnsupported, "token_unsupported", exitNoKey, "luksmediad unlock"},
		{tpm2.ErrFailed, "tpm_failed", exitNoKey, "journalctl -k --grep tpm"},
		{unlock.ErrKeyFileMissing, "key_missing", exitNoKey, "luksmediad unlock"},
		{unlock.ErrKeyFileUnsafe, "key_unsafe", exitRefused, "chown root:root the key file && chmod 0400 the key file"},
		{secret.ErrEmpty, "key_empty", exitNoKey, "luksmediad unlock"},
		{secret.ErrTooLarge, "key_too_large", exitNoKey, "luksmediad unlock"},
		{unlock.ErrNoKeyslot, "no_keyslot", exitNoKey, "luksmediad unlock"},
		{unlock.ErrWrongKey, "wrong_key", exitNoKey, "luksmediad unlock"},
		{unlock.ErrNoDeviceMapper, "no_device_mapper", exitFailed, "modprobe dm-crypt"},
		{unlock.ErrForeignMapping, "mapping_foreign", exitRefused, "dmsetup table"},
		{unlock.ErrMappingBusy, "in_use", exitBusy, "lsblk; fuser -vm the mount point"},
		{unlock.ErrCryptsetupTooOld, "cryptsetup_too_old", exitFailed, "apt install cryptsetup-bin"},

		{mount.ErrPrivateNamespace, "private_namespace", exitRefused, "systemctl cat luksmediad"},
		{mount.ErrFilesystemDamaged, "filesystem_damaged", exitVerify, "luksmediad status"},
		{mount.ErrBusy, "in_use", exitBusy, "fuser -vm the mount point"},
		{mount.ErrNoSpace, "no_space", exitFailed, "df -h"},
		{mount.ErrSymlink, "symlink", exitRefused, "readlink -f the path, and configure that"},
		{mount.ErrNotDirectory, "not_directory", exitRefused, "ls -ld the path"},
		{mount.ErrNotEmpty, "store_not_empty", exitRefused, "ls -la the path"},
		{mount.ErrForeign, "mount_foreign", exitRefused, "lsblk -f"},

		{command.ErrNotFound, "program_missing", exitFailed, "apt install cryptsetup-bin e2fsprogs xfsprogs"},
		{state.ErrNewer, "state_newer", exitRefused, "install the newer luksmediad again"},
		{state.ErrCorrupt, "state_corrupt", exitRefused, "ls -l /var/lib/luksmediad"},
		{unlock.ErrCryptsetup, "cryptsetup", exitFailed, "journalctl -u luksmediad"},
		{fs.ErrPermission, "permission", exitFailed, "sudo luksmediad …"},
		{fs.ErrNotExist, "not_found", exitFailed, "ls -ld the path"},
	}
}

// explain gives the class of an error and what follows from it.
func explain(err error) api.Explanation {
	if problem, ok := errors.AsType[*api.ProblemError](err); ok {
		return api.Explanation{Class: problem.Class, Next: problem.Next, ExitCode: problem.ExitCode}
	}
	if _, ok := errors.AsType[*config.Error](err); ok {
		return api.Explanation{Class: "config", Next: "luksmediad config check", ExitCode: exitUsage}
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return api.Explanation{Class: "usage", Next: "luksmediad --help", ExitCode: exitUsage}
	}
	for _, h := range hints() {
		if errors.Is(err, h.class) {
			return api.Explanation{Class: api.Class(h.word), Next: h.next, ExitCode: h.exit}
		}
	}
	return api.Explanation{Class: classOther, ExitCode: exitFailed}
}

// classOther is the word for what is in no class.
const classOther = "other"

// words are all words that explain can give, for metrics.
func words() []string {
	words := []string{classOther}
	for _, h := range hints() {
		words = append(words, h.word)
	}
	return words
}

// advise says what to type about a condition that does not hold, by its reason.
func advise(_ health.Code, reason health.Reason) string {
	for _, h := range hints() {
		if h.word == string(reason) {
			return h.next
		}
	}
	return probeAdvice(reason)
}

// probeAdvice covers the reasons that no error of a command has.
func probeAdvice(reason health.Reason) string {
	switch reason {
	case "locked":
		return "luksmediad unlock"
	case "not_open":
		return "luksmediad status"
	case "store_plaintext", health.ReasonNotMovedIn:
		return "luksmediad status"
	case health.ReasonPlaintext, health.ReasonCipherMismatch, health.ReasonMagicMissing, health.ReasonNotRandom:
		return "luksmediad lock"
	case health.ReasonNoSpace:
		return "df -h /var/lib/luksmediad/volumes/*"
	case health.ReasonIO, health.ReasonReadOnly, health.ReasonUnreadable:
		return "journalctl -k --priority warning --since -1h"
	case health.ReasonSynapseUnreachable:
		return "docker ps --all"
	case health.ReasonRefused, health.ReasonNotImage, health.ReasonNotOnVolume:
		return "docker logs --tail 50 synapse"
	case health.ReasonUnauthorized:
		return "grep as_token the registration file and compare with probes.synapse.token_file"
	case health.ReasonStale, health.ReasonTimeout:
		return "luksmediad status"
	}
	return ""
}
