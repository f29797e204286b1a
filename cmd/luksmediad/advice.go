package main

import (
	"luksmediad/pkg/health"
)

// advice is what to type about a reason of a condition that no error of a command has.
type advice struct {
	reason health.Reason
	next   string
}

// repairHeader is what to type about a header of which one copy is left.
const repairHeader = "cryptsetup luksHeaderBackup {container} --header-backup-file /root/header.img && cryptsetup repair {container}"

// stateAdvice is about conditions that the daemon decides without an error.
func stateAdvice() []advice {
	return []advice{
		{"locked", "luksmediad unlock"},
		{"gate_stopped", "luksmediad unlock"},
		{"not_open", "luksmediad unlock"},
		{"store_plaintext", "luksmediad migrate {store_name}"},
		{"store_moving", "luksmediad migrate --attach"},
		{"store_unfinished", "luksmediad migrate {store_name}"},
		{damagedCopy, repairHeader},
		{"key_same_disk", "findmnt --target {keyfile}; move the key file to another disk and name it in /etc/luksmediad/config.yaml"},
		{"protection_unknown", "lsblk --output NAME,TYPE,RM,MOUNTPOINTS; luksmediad config check"},
	}
}

// probeAdvice is about the closed sets of reasons of the probes.
func probeAdvice() []advice {
	const (
		kernelLog = "journalctl -k --priority warning --since -1h"
		log       = "journalctl -u luksmediad --since -1h"
	)
	return []advice{
		{health.ReasonPlaintext, "luksmediad lock"},
		{health.ReasonNotRandom, "luksmediad lock"},
		{health.ReasonCipherMismatch, "luksmediad lock"},
		{health.ReasonMagicMissing, "file -s {container}"},
		{health.ReasonHole, log},
		{health.ReasonUnreadable, kernelLog},
		{health.ReasonIO, kernelLog},
		{health.ReasonReadOnly, kernelLog},
		{health.ReasonTimeout, kernelLog},
		{health.ReasonNoSpace, "df -h /var/lib/luksmediad/volumes/*"},
		{health.ReasonNotMounted, "luksmediad unlock"},
		{health.ReasonNotMovedIn, "luksmediad migrate {store_name}"},
		{health.ReasonNotOnVolume, "docker inspect synapse"},
		{health.ReasonNotImage, "docker logs --tail 50 synapse"},
		{health.ReasonRefused, "docker logs --tail 50 synapse"},
		{health.ReasonSynapseUnreachable, "docker ps --all"},
		{health.ReasonUnauthorized, "grep as_token the registration file; compare with probes.synapse.token_file"},
		{health.ReasonStale, "systemctl status luksmediad"},
		{health.ReasonError, log},
	}
}

// advise says what to type about a condition that does not hold, by its reason: that of a probe, or the class of the
// error in a step of the lifecycle.
func advise(code health.Code, reason health.Reason) string {
	if health.Reasons(code) != nil {
		return find(probeAdvice(), reason)
	}
	for _, h := range hints() {
		if h.word == string(reason) {
			return h.next
		}
	}
	return find(stateAdvice(), reason)
}

func find(rows []advice, reason health.Reason) string {
	for _, row := range rows {
		if row.reason == reason {
			return row.next
		}
	}
	return ""
}
