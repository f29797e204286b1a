package main

import (
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
	"luksmediad/test/golden"
)

// statusAt is when the statuses of the tests are printed.
func statusAt() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func openStatus() *api.Status {
	keyslot := 1
	checked := statusAt().Add(-4 * time.Second)
	return &api.Status{
		Volume: "synapse-media", State: api.VolumeStateOpen, Phase: api.PhaseServing, Filesystem: "ext4",
		Container: "/var/lib/luksmediad/synapse-media.luks", ContainerBytes: 50 << 30,
		Mapping: "/dev/mapper/luksmediad-synapse-media", Device: "/dev/loop0", Mountpoint: "/var/lib/luksmediad/volumes/synapse-media",
		OpenedBy: api.Opening{Kind: "tpm2", Keyslot: &keyslot},
		Sources: []api.Source{
			{Kind: "tpm2", Outcome: api.SourceOutcomeOpened, Keyslot: &keyslot},
			{Kind: "keyfile", Outcome: api.SourceOutcomeUntried},
		},
		Protection: api.Protection{Level: api.ProtectionLevelSnapshot, Source: "tpm2", Root: api.ProtectionRootPlain, PCRs: []int{7},
			Text:    "the key is sealed in the TPM, bound to PCRs 7",
			Warning: "root filesystem is neither encrypted nor verified"},
		Stores: []api.Store{{Name: "media", Path: "/srv/synapse/media_store", State: "encrypted", Mounted: true}},
		Conditions: []api.Condition{
			{Code: "mount", Status: api.ConditionStatusOk},
			{Code: "write", Status: api.ConditionStatusOk, Text: "4096 bytes written and read back", Checked: checked},
			{Code: "gate", Status: api.ConditionStatusOk},
			{Code: "protection", Status: api.ConditionStatusOk, Text: "the key is sealed in the TPM, bound to PCRs 7", Checked: checked},
		},
	}
}

// waitingStatus is that of a volume whose TPM no longer gives the key.
func waitingStatus() *api.Status {
	s := openStatus()
	s.State, s.Phase, s.OpenedBy = api.VolumeStateClosed, api.PhaseWaiting, api.Opening{}
	s.Sources[0] = api.Source{Kind: "tpm2", Outcome: api.SourceOutcomeFailed, Reason: "tpm_policy", Text: "cannot unseal: PCR 7 has changed"}
	s.Stores[0].Mounted, s.Stores[0].Guarded = false, true
	s.Conditions = []api.Condition{
		{Code: "unlock", Status: api.ConditionStatusFailed, Reason: "no_key_fits", Text: "no key fits (tpm2: cannot unseal: PCR 7 has changed)", Next: "luksmediad unlock"},
		{Code: "mount", Status: api.ConditionStatusUnknown, Cause: "unlock"},
		{Code: "gate", Status: api.ConditionStatusFailed, Reason: "not_open", Cause: "unlock"},
	}
	return s
}

// What a person reads, and the exit code that goes with it.
func TestPrintStatus(t *testing.T) {
	adopted := openStatus()
	adopted.OpenedBy = api.Opening{}
	degraded := openStatus()
	degraded.Stores[0].State, degraded.Stores[0].Mounted = "plaintext", false
	degraded.Conditions = append(degraded.Conditions, api.Condition{Code: "store", Status: api.ConditionStatusDegraded,
		Reason: "store_plaintext", Text: "store media lies in clear text", Next: "ls -la the path"})
	stopped := openStatus()
	stopped.Conditions[2] = api.Condition{Code: "gate", Status: api.ConditionStatusDegraded, Reason: "services_stopped",
		Text: "services were stopped for a lock that has failed, and stay so until luksmediad unlock: docker.service", Next: "luksmediad unlock"}
	beside := openStatus()
	beside.Protection = api.Protection{Level: api.ProtectionLevelNoneSameDisk, Source: "keyfile", Root: api.ProtectionRootEncrypted,
		Text: "key file /root/key lies on disk vda, as the container does: and a lot more"}
	beside.Conditions[3] = api.Condition{Code: "protection", Status: api.ConditionStatusDegraded, Reason: "key_same_disk",
		Text: "key file /root/key lies on disk vda, as the container does…", Next: "findmnt --target /root/key", Checked: beside.Conditions[3].Checked}
	hanging, unknown := openStatus(), openStatus()
	hanging.Conditions[3] = api.Condition{Code: "protection", Status: api.ConditionStatusDegraded, Reason: "protection_unknown",
		Text: "where the keys lie was not found out in 10s", Next: "lsblk", Checked: hanging.Conditions[3].Checked}
	unknown.Protection, unknown.Conditions[3] = api.Protection{}, api.Condition{Code: "protection", Status: api.ConditionStatusUnknown}
	alone, aloneOpen := waitingStatus(), openStatus()
	alone.Phase, alone.Conditions, aloneOpen.Conditions = api.PhaseLocked, nil, nil
	unmounted, unbound, outside := openStatus(), openStatus(), openStatus()
	for _, s := range []*api.Status{unmounted, unbound, outside} {
		s.Conditions, s.Stores[0].Mounted = nil, false
	}
	unmounted.Mountpoint = ""
	unmounted.Phase, outside.Stores[0].State = api.PhaseLocked, api.StoreStatePlaintext
	var text strings.Builder
	for _, test := range []struct {
		name   string
		status *api.Status
		exit   int
	}{
		{"serving", openStatus(), exitDone},
		{"adopted", adopted, exitDone},
		{"degraded", degraded, exitDegraded},
		{"services that stay down", stopped, exitDegraded},
		{"a key beside the container", beside, exitDegraded},
		{"a disk hangs", hanging, exitDegraded},
		{"not looked for the keys yet", unknown, exitDone},
		{"waiting for a key", waitingStatus(), exitGateClosed},
		{"without a daemon", alone, exitGateClosed},
		{"without a daemon, open", aloneOpen, exitDone},
		{"without a daemon, open and not mounted", unmounted, exitGateClosed},
		{"without a daemon, a store not mounted", unbound, exitGateClosed},
		{"without a daemon, a store that has not moved in", outside, exitDone},
	} {
		text.WriteString("== " + test.name + "\n")
		if err := printStatus(&text, test.status, statusAt()); err != nil {
			t.Error(err)
		}
		text.WriteString("\n")
		if got := statusExit(test.status); got != test.exit {
			t.Errorf("%s: exit code %d, want %d", test.name, got, test.exit)
		}
	}
	golden.Compare(t, "testdata/status.golden", text.String())
}
