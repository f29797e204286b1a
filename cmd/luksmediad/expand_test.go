package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// Advice can be pasted as it stands: no names are left to fill in once there is a configuration.
func TestAdviceIsFilled(t *testing.T) {
	c := &config.Config{
		Volume: config.Volume{Name: "media", Container: "/var/media.luks", Filesystem: config.XFS},
		Stores: []config.Store{{Name: "media", Path: "/srv/media_store", Owner: config.Owner{UID: 991, GID: 992}}},
		Unlock: []config.KeySource{{Keyfile: &config.Keyfile{Path: "/root/media.key"}}},
		Probes: config.Probes{Synapse: &config.Synapse{Store: "media", HomeserverConfig: "/srv/homeserver.yaml"}},
	}
	var advised []string
	for _, h := range hints() {
		advised = append(advised, h.next)
	}
	for _, row := range append(probeAdvice(), stateAdvice()...) {
		advised = append(advised, strings.ReplaceAll(row.next, "{subject}", "what fails")) // the board fills that
	}
	for _, next := range advised {
		if filled := expand(c, next); regexp.MustCompile(`\{[^ }]*\}`).MatchString(filled) {
			t.Errorf("not filled: %s", filled)
		}
	}
	for filesystem, want := range map[config.Filesystem]string{config.Ext4: "e2fsck -f /dev", config.XFS: "xfs_repair /dev"} {
		c.Volume.Filesystem = filesystem
		if got := expand(c, "{fsck} /dev"); got != want {
			t.Errorf("%s: got %q, want %q", filesystem, got, want)
		}
	}
	if got, want := expand(c, "chown {owner} {store}"), "chown 991:992 /srv/media_store"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.Stores = append(c.Stores, config.Store{Name: "other", Path: "/srv/other"})
	if got, want := expand(c, "findmnt {store}; fuser -vm {stores}"), "findmnt {store}; fuser -vm /srv/media_store /srv/other"; got != want {
		t.Errorf("several stores: got %q, want %q", got, want)
	}
}

type aboutStore struct {
	error
	store string
}

func (e aboutStore) Unwrap() error { return e.error }
func (e aboutStore) Store() string { return e.store }

// Of several stores advice names the one that the error, or the condition, is about.
func TestAdviceNamesTheStore(t *testing.T) {
	c := &config.Config{Stores: []config.Store{
		{Name: "media", Path: "/srv/media"}, {Name: "other", Path: "/srv/other", Service: &config.Service{Docker: "app"}},
	}}
	trial, unguarded := aboutStore{volume.ErrTrial, "other"}, aboutStore{mount.ErrUnguarded, "media"}
	for _, test := range []struct {
		err         error
		store, next string
	}{
		{fmt.Errorf("cannot: %w", trial), "other", "luksmediad migrate other"},
		{errors.Join(unguarded, trial), "other", "luksmediad migrate other"}, // trial is the class of both
		{errors.Join(trial, mount.ErrUnguarded), "other", "luksmediad migrate other"},
		{unguarded, "media", "lsattr -d /srv/media"},
		{aboutStore{volume.ErrUnhealthy, "other"}, "other", "journalctl -u luksmediad --since -1h; docker logs --tail 50 app"},
		{volume.ErrTrial, "", "luksmediad migrate {store_name}"},
	} {
		if got := explainFor(c, test.err); got.Store != test.store || got.Next != test.next {
			t.Errorf("%v: %q, %s", test.err, got.Store, got.Next)
		}
	}
	board := health.NewBoard(health.Options{Advise: adviceFor(c)})
	next := func(code health.Code) string {
		for _, condition := range board.Snapshot() {
			if condition.Code == code {
				return condition.Next
			}
		}
		return ""
	}
	for name, want := range map[string]string{"media": "luksmediad migrate media", "other": "luksmediad migrate other"} {
		board.SetOf(health.Store, health.Warn, daemon.ReasonPlaintext, name, "")
		if got := next(health.Store); got != want {
			t.Errorf("store %s: %s", name, got)
		}
	}
	board.SetOf(health.Container, health.Fail, "move_unclear", "media", "")
	if got := next(health.Container); got != "ls -la /srv/media; luksmediad migrate rollback media" {
		t.Errorf("container: %s", got)
	}
}

// What is asked about Synapse, or another service, is asked of what is configured.
func TestAdviceAsksTheService(t *testing.T) {
	for name, test := range map[string]struct {
		service *config.Service
		want    string
	}{
		"docker": {&config.Service{Docker: "matrix"}, "docker logs --tail 50 matrix|docker ps --all|docker inspect matrix"},
		"project": {&config.Service{Compose: &config.Compose{Project: "matrix", Service: "hs"}},
			"docker compose -p matrix logs --tail 50 hs|docker compose -p matrix ps --all|docker inspect $(docker compose -p matrix ps --all --quiet hs)"},
		"file": {&config.Service{Compose: &config.Compose{File: "/srv/app/compose.yml", Service: "hs"}},
			"docker compose -f /srv/app/compose.yml logs --tail 50 hs|docker compose -f /srv/app/compose.yml ps --all|" +
				"docker inspect $(docker compose -f /srv/app/compose.yml ps --all --quiet hs)"},
		"unit": {&config.Service{Systemd: "hs.service"}, "journalctl -u hs.service -n 50|systemctl status hs.service|systemctl cat hs.service"},
		"none": {nil, "journalctl --since -1h|ss --listening --tcp --numeric --processes|findmnt --target /srv/media"},
	} {
		c := &config.Config{Stores: []config.Store{{Name: "media", Path: "/srv/media", Service: test.service}}}
		for _, of := range []string{"service", "synapse"} {
			if got := expand(c, strings.ReplaceAll("{of_log}|{of_state}|{of_description}", "of", of)); got != test.want {
				t.Errorf("%s: %s", name, got)
			}
		}
		// Of several stores the one of the probe is Synapse's; which of them an error is about is not known.
		log, _, _ := strings.Cut(test.want, "|")
		c.Stores = append([]config.Store{{Name: "other", Path: "/srv/other", Service: &config.Service{Docker: "other"}}}, c.Stores...)
		c.Probes.Synapse = &config.Synapse{Store: "media", URL: "http://[::1]:8008"}
		if got := expand(c, "{synapse_log}|{synapse_state}|{synapse_description}|{service_log}"); got != test.want+"|docker logs --tail 50 other; "+log {
			t.Errorf("%s beside another: %s", name, got)
		}
	}
	for url, want := range map[string]string{
		"http://localhost:8008": "docker ps --all", "http://127.0.0.1:8008": "docker ps --all",
		"http://172.18.0.5:8008":     "systemctl show --property IPAddressAllow luksmediad; docker ps --all",
		"https://matrix.example.org": "systemctl show --property IPAddressAllow luksmediad; docker ps --all",
	} {
		c := &config.Config{Stores: []config.Store{{Name: "media", Service: &config.Service{Docker: "hs"}}}}
		c.Probes.Synapse = &config.Synapse{Store: "media", URL: url}
		if got := adviceFor(c)(health.Thumbnail, health.ReasonSynapseUnreachable, ""); got != want {
			t.Errorf("%s: %s", url, got)
		}
	}
	for _, row := range probeAdvice() {
		if strings.Contains(row.next, "synapse ") || strings.HasSuffix(row.next, " synapse") {
			t.Errorf("%s names a container that may not be there: %s", row.reason, row.next)
		}
	}
}

// What is typed is about the configuration that is in use, and root needs no sudo.
func TestAdviceAsTyped(t *testing.T) {
	for _, test := range []struct{ next, asRoot, other string }{
		{editConfig, "editor /etc/luksmediad/config.yaml; luksmediad config check", "sudoedit /srv/my.yaml; luksmediad --config /srv/my.yaml config check"},
		{retryAsRoot, kernelLog, "sudo luksmediad --config /srv/my.yaml …"},
		{reviewHeader, reviewHeader, "luksmediad --config /srv/my.yaml key list; luksmediad --config /srv/my.yaml key remove N --foreign, " +
			"or if it is right: luksmediad --config /srv/my.yaml header backup"},
		{"systemctl status luksmediad; cryptsetup close x && luksmediad unlock", "systemctl status luksmediad; cryptsetup close x && luksmediad unlock",
			"systemctl status luksmediad; cryptsetup close x && luksmediad --config /srv/my.yaml unlock"},
		{"journalctl -u luksmediad --since -1h", "journalctl -u luksmediad --since -1h", "journalctl -u luksmediad --since -1h"},
		{"install the newer luksmediad again", "install the newer luksmediad again", "install the newer luksmediad again"},
	} {
		if got := asTyped(test.next, config.DefaultPath, true); got != test.asRoot {
			t.Errorf("%s: as root %s", test.next, got)
		}
		if got := asTyped(test.next, "/srv/my.yaml", false); got != test.other {
			t.Errorf("%s: with --config %s", test.next, got)
		}
	}
}

// A header that is gone comes back from the copy that is kept, which advice names where there is a record of the container.
func TestAdviceNamesTheHeaderCopy(t *testing.T) {
	const restore = "cryptsetup luksHeaderRestore /srv/media.luks --header-backup-file "
	c := &config.Config{Volume: config.Volume{Name: "media", Container: "/srv/media.luks"}}
	a := &app{config: c, places: places{Paths: volume.Paths{State: t.TempDir()}}}
	require := func(when, copied string) {
		t.Helper()
		for reason, before := range map[health.Reason]string{
			health.ReasonHeaderDamaged: "", health.ReasonNotLUKS2: "file -s /srv/media.luks; if it is the container, and its header is gone: ",
		} {
			if got, want := a.adviceFor(c)(health.Header, reason, ""), before+copied; got != want {
				t.Errorf("%s, %s: %s, want %s", when, reason, got, want)
			}
		}
	}
	unknown := "ls /var/lib/luksmediad/headers; " + restore + "/var/lib/luksmediad/headers/FILE"
	require("no record", unknown)
	if err := (state.Store{Dir: a.places.State}).Save("volume-media", 1, &volume.Record{Container: c.Volume.Container, Pin: luks2.Pin{UUID: "uuid"}}); err != nil {
		t.Fatal(err)
	}
	require("no copy", unknown)
	path := filepath.Join(a.places.State, "headers", "media-uuid.img")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	require("a copy", restore+path)
}

// A folder that is not there has to be made; what only says that it is not is no help.
func TestAdviceAboutFolders(t *testing.T) {
	there := t.TempDir()
	gone := filepath.Join(there, "gone")
	_, missing := os.Stat(gone)
	for _, test := range []struct{ container, store, want string }{
		{gone + "/media.luks", there + "/media", "findmnt --target " + gone + "; mount what belongs there, or: mkdir -p " + gone},
		{there + "/media.luks", gone + "/media", "findmnt --target " + gone + "; mount what belongs there, or: mkdir -p " + gone},
		{there + "/media.luks", there + "/media", "luksmediad config check"},
	} {
		c := &config.Config{Volume: config.Volume{Container: test.container}, Stores: []config.Store{{Name: "media", Path: test.store}}}
		if got := explainFor(c, fmt.Errorf("cannot: %w", missing)).Next; got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

// A block device does not grow by itself.
func TestAdviceToGrow(t *testing.T) {
	const enlarge = "enlarge /dev/vg/media by what made it, such as lvextend, and luksmediad grow"
	device := adviceFor(&config.Config{Volume: config.Volume{Name: "media", Container: "/dev/vg/media"}})
	file := adviceFor(&config.Config{Volume: config.Volume{Name: "media", Container: "/srv/media.luks"}})
	for reason, before := range map[health.Reason]string{health.ReasonLowSpace: "", health.ReasonFullSoon: "", health.ReasonNoSpace: "df -h /var/lib/luksmediad/volumes/media; "} {
		if got := device(health.Space, reason, ""); got != before+enlarge {
			t.Errorf("%s of a device: %s", reason, got)
		}
		if got := file(health.Space, reason, ""); got != before+"luksmediad grow --by 10GiB --dry-run" {
			t.Errorf("%s of a file: %s", reason, got)
		}
	}
	if got := device(health.Mount, "volume_full", ""); got != enlarge {
		t.Errorf("too small for a store: %s", got)
	}
}

// The file in the advice is the one that the error is about, not the configured key file.
func TestAdviceNamesTheFile(t *testing.T) {
	c := &config.Config{Unlock: []config.KeySource{{Keyfile: &config.Keyfile{Path: "/root/media.key"}}}}
	about := func(class error) error {
		return &unlock.FileError{Path: "/other", Reason: fmt.Errorf("cannot: %w", class)}
	}
	_, unsafe := unlock.KeyFile{Path: "/dev/null"}.Read()
	missing := filepath.Join(t.TempDir(), "missing")
	_, gone := (&unlock.PINFile{Path: missing}).PIN(t.Context())
	for _, test := range []struct {
		err         error
		next, ahead string
	}{
		{about(unlock.ErrKeyFileUnsafe), "ls -l /other; chown root:root /other && chmod 0400 /other", "ls -l /other; chown root:root /other && chmod 0400 /other"},
		{unsafe, "ls -l /dev/null; chown root:root /dev/null && chmod 0400 /dev/null", "ls -l /dev/null; chown root:root /dev/null && chmod 0400 /dev/null"},
		{about(unlock.ErrKeyFileModes), strings.ReplaceAll(mountPrivate, "{file}", "/other"), strings.ReplaceAll(mountPrivate, "{file}", "/other")},
		{gone, "luksmediad unlock", "ls -l " + missing},
		{about(secret.ErrEmpty), "luksmediad unlock", "ls -l /other"},
		{secret.ErrEmpty, "luksmediad unlock", "luksmediad key list"},
		{tpm2.ErrPINNeeded, "luksmediad unlock", "luksmediad key test --pin-file FILE"},
		{tpm2.ErrPCRChanged, "luksmediad unlock", "luksmediad key drift"},
		{unlock.ErrWrongKey, "luksmediad unlock", "luksmediad key list"},
		{tpm2.ErrPolicy, "luksmediad key add tpm2 --replace", "luksmediad key add tpm2 --replace"},
	} {
		if got := explainFor(c, test.err).Next; got != test.next {
			t.Errorf("%v: %s, want %s", test.err, got, test.next)
		}
		if got := explainAhead(c, test.err).Next; got != test.ahead {
			t.Errorf("%v, ahead: %s, want %s", test.err, got, test.ahead)
		}
	}
}

// A command that takes a passphrase does not send on to unlock a volume that may be open.
func TestAdviceWhereNoKeyFits(t *testing.T) {
	noKey := &unlock.NoKeyError{Container: "/c", Attempts: []unlock.Attempt{{Source: "keyfile",
		Err: &unlock.FileError{Path: "/other", Reason: unlock.ErrKeyFileMissing}}}}
	empty := &unlock.FileError{Path: "/empty", Reason: secret.ErrEmpty}
	for _, test := range []struct {
		args []string
		err  error
		want string
	}{
		{[]string{"key", "add", "recovery"}, noKey, "luksmediad key add recovery --passphrase-file FILE"},
		{[]string{"key", "remove"}, noKey, "luksmediad key remove N --passphrase-file FILE"},
		{[]string{"key", "add", "recovery", "--passphrase-file=/f"}, noKey, "luksmediad key test --passphrase-file /f"},
		{[]string{"key", "test", "--passphrase-file=/empty"}, empty, "ls -l /empty"},
		{[]string{"unlock"}, noKey, "luksmediad unlock"},
		{[]string{"status"}, noKey, "luksmediad unlock"},
	} {
		s := newSession(t)
		a := &app{stdin: s.in, stdout: s.out, stderr: s.err, started: true}
		cmd, rest, err := newRootCommand(a).Find(test.args)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err != nil {
			t.Fatal(err)
		}
		a.finish(cmd, test.err)
		if got := regexp.MustCompile(`(?m)^type: (.*)$`).FindStringSubmatch(written(t, s.err)); got == nil || got[1] != test.want {
			t.Errorf("%v: %q, want %q", test.args, got, test.want)
		}
	}
}
