//go:build boot

package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// failure is something of which Synapse's own /health says nothing.
type failure struct {
	name string
	// undo is empty where the next failure begins with this one.
	do, undo string
	// restarts: Synapse is started anew, down: and does not get so far.
	restarts, down bool
	// upload and thumbnail are what Synapse answers to a new picture, old is what it answers about one from before; empty: it is not asked.
	upload, thumbnail, old string
	// resume is done then.
	resume string
	// said and next are what /healthz?verbose has to say.
	said, next string
}

const (
	volumeRoot = "/var/lib/luksmediad/volumes/synapse-media"

	// left is what others than root can use. The picture takes 30 blocks of 4 KiB, and its folders two.
	leaveBlocks = `fill() {
		left=$(df --output=avail --block-size=4K ` + mediaStore + ` | tail --lines=1)
		fallocate --length $(((left - $1) * 4096)) ` + mediaStore + `/filler-$1
	}
	fill 100; fill %d; df ` + mediaStore
	removeFillers = "rm " + mediaStore + "/filler-*"

	canaryRecord   = volumeRoot + "/.luksmediad/canary.json"
	canaryOriginal = `id=$(sed 's,.*"uri":"\([^"]*\)".*,\1,' ` + canaryRecord + `); id=${id##*/}; original=` +
		mediaStore + `/local_content/${id:0:2}/${id:2:2}/${id:4}; `

	// The daemon would mount the store again before Docker has started the container.
	startEarly = `systemctl kill --signal=SIGSTOP luksmediad && umount ` + mediaStore + `
	docker run --detach --name early --network none --volume ` + synapseData + `:/data synapse sleep 1000
	systemctl kill --signal=SIGCONT luksmediad`

	// spooling is a container that would keep uploads on the disk until they are complete.
	spooling = "docker run --detach --name spooling --network none --volume " + synapseData + ":/data synapse sleep 1000"

	// bareInside has Synapse see the bare mountpoint, as if its container had been started before the volume was mounted.
	bareInside = `nsenter --target $(docker inspect --format '{{.State.Pid}}' synapse) --mount umount /data/media_store`

	// storeElsewhere is followed by a path and a quote.
	storeElsewhere = "sed --in-place 's,^media_store_path: .*,media_store_path: "
	configFile     = synapseData + "/homeserver.yaml"
	missingStore   = synapseData + "/missing"

	refusesToStart = storeElsewhere + "/srv/missing/media,' " + configFile + ` && docker restart synapse`
	hasRefused     = `for i in $(seq 60); do docker logs --since 2m synapse 2>&1 | grep 'PermissionError' && exit; sleep 1; done; exit 1`

	// anotherFolder is one that Synapse makes. The canary is an hour old, as it would be.
	anotherFolder = storeElsewhere + "/data/missing,' " + configFile + ` && docker restart synapse
	sed --in-place 's/"uploaded":"[^"]*"/"uploaded":"'$(date --utc --date='1 hour ago' +%FT%TZ)'"/' ` + canaryRecord

	// slaveContainer sees what is mounted and unmounted on the machine. Its Synapse makes thumbnails of the very size that is asked for.
	slaveContainer = storeElsewhere + "/data/media_store,' " + configFile + ` && echo 'dynamic_thumbnails: true' >>` + configFile + `
	docker rm --force synapse && rm -r ` + missingStore + `
	docker run --detach --name synapse --restart unless-stopped --network host --user 991:991 --tmpfs /tmp --volume ` + synapseData + `:/data:rslave \
		synapse python3 -m synapse.app.homeserver --config-path /data/homeserver.yaml`

	// bareForAll takes the guard away, too. The daemon, which would put both back at once, is held up until Synapse has written.
	bareForAll = `systemctl kill --signal=SIGSTOP luksmediad && umount ` + mediaStore + ` &&
	chattr -i ` + mediaStore + ` && chown 991:991 ` + mediaStore + ` && chmod 755 ` + mediaStore
	// cleanBare must not touch the volume.
	cleanBare = "mountpoint --quiet " + mediaStore + " || find " + mediaStore + " -mindepth 1 -delete"
)

// noticed is how long the daemon may take to notice. On a machine of its own that is an interval. Here the probe shares an emulated processor with
// Synapse and this test: a run may take until its deadline, which is as long as the interval, and when one does the next is left out.
const noticed = 3 * probeInterval

// failures is the table of what goes wrong in a media store, as far as luksmediad does not prevent it.
func failures() []failure {
	return []failure{
		{name: "nothing left", do: fmt.Sprintf(leaveBlocks, 0), undo: removeFillers, upload: "500",
			said: "[-]space failed: no_space", next: "luksmediad grow"},
		{name: "room for the original only", do: fmt.Sprintf(leaveBlocks, 33), undo: removeFillers, upload: "200", thumbnail: "400",
			said: "[-]space failed: no_space", next: "luksmediad grow"},
		{name: "read-only", do: "mount -o remount,ro " + volumeRoot, undo: "mount -o remount,rw " + volumeRoot, upload: "500",
			said: "[-]write failed: read_only", next: "journalctl -k"},
		{name: "original unreadable", do: canaryOriginal + "chmod 0 $original", undo: canaryOriginal + "chmod 644 $original", upload: "200", thumbnail: "200",
			said: "[-]thumbnail failed: refused", next: "docker logs"},
		{name: "original corrupt", do: canaryOriginal + "cp --preserve=all $original $original.away && printf damage | dd of=$original conv=notrunc status=none",
			undo: canaryOriginal + "mv $original.away $original", said: "[-]thumbnail failed: io_error", next: "journalctl -k"},
		{name: "original gone, thumbnail present", do: canaryOriginal + "mv $original $original.away", undo: canaryOriginal + "mv $original.away $original",
			said: "[-]thumbnail failed: original_gone", next: "journalctl -k"},
		{name: "container from before the mount", do: startEarly, undo: "docker rm --force early",
			said: "[-]containers failed: container_stale", next: "docker restart early"},
		{name: "uploads on the disk", do: spooling, undo: "docker rm --force spooling",
			said: "[!]containers degraded: uploads_on_disk", next: "give container spooling a tmpfs at /tmp"},
		{name: "empty and immutable", do: bareInside, upload: "500", old: "500", // with another mode than the guard's it would be 404
			said: "[-]containers failed: container_stale", next: "docker restart synapse"},
		{name: "path missing, parent not writable", do: refusesToStart, down: true,
			said: "[!]thumbnail degraded: synapse_unreachable", next: "docker ps --all"},
		{name: "path missing, parent writable", do: anotherFolder, restarts: true, upload: "200", thumbnail: "200", old: "404",
			said: "[-]thumbnail failed: not_on_volume", next: "docker inspect synapse"},
		{name: "mended, in a container that sees mounts", do: slaveContainer, restarts: true, upload: "200", thumbnail: "200", old: "200",
			said: "[+]thumbnail ok", next: "[+]containers ok"},
		{name: "unmounted under Synapse", do: bareForAll, upload: "200", thumbnail: "200", old: "404",
			resume: "systemctl kill --signal=SIGCONT luksmediad", undo: cleanBare,
			said: "[-]guard failed: store_not_empty", next: "ls -la " + mediaStore},
	}
}

// checkFailures has a real Synapse fail in each of these ways while its /health says OK. The probe that has to notice does so in time, says what to
// type, and is well again by itself. id is a picture from before.
//
// fault 67
func (m *Machine) checkFailures(id string) {
	starts := m.containerStarts()
	m.Run("systemctl service-watchdogs no") // some cases hold the daemon up for as long as Docker takes
	for _, f := range failures() {
		m.t.Logf("%s: %s", f.name, m.Run("{ "+f.do+"; } 2>&1"))
		if f.restarts {
			m.WaitForSynapse()
		}
		began := m.now()
		if f.down {
			m.Run(hasRefused)
		}
		m.checkAnswers(f, id)
		if f.resume != "" {
			m.Run(f.resume)
			began = m.now()
		}
		m.checkNoticed(f, began)
		if said, _ := m.Try(curl + synapseURL + "/health"); strings.Contains(said, "OK") == f.down {
			m.t.Errorf("%s: Synapse itself says %q", f.name, said)
		}
		if f.undo != "" {
			m.Run(f.undo)
			m.checkWell(f)
		}
	}
	m.Run("systemctl service-watchdogs yes")
	m.checkEncrypted()    // the unmounted store is mounted again
	m.thumbnailOf(id, 50) // no other than a dynamic one
	if now := m.containerStarts(); now < starts+3 {
		m.t.Errorf("Synapse's container was started %d times, before that %d times", now, starts)
	}
}

// checkNoticed wants /healthz to name the failure, and the daemon to have seen it in time. That is measured by the machine's own clock: how long
// it takes to say so is no matter. A Synapse that does not start again was found down while it stopped, before the time counts.
func (m *Machine) checkNoticed(f failure, began time.Time) {
	m.t.Helper()
	m.Eventually(time.Minute, f.name+" is noticed", func() error {
		text, _ := m.healthz()
		if _, below, found := strings.Cut(text, f.said); !found || !strings.Contains(below, f.next) {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	took := m.since(f.condition()).Sub(began)
	m.t.Logf("%s: noticed after %s", f.name, took)
	if took > noticed || took < 0 && !f.down {
		m.t.Errorf("%s is noticed after %s, not within %s", f.name, took, noticed)
	}
}

// condition is the one that /healthz names.
func (f failure) condition() string {
	code, _, _ := strings.Cut(f.said[len("[-]"):], " ")
	return code
}

// now is the machine's clock.
func (m *Machine) now() time.Time {
	m.t.Helper()
	now, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(m.Run("date --utc +%FT%T.%NZ")))
	if err != nil {
		m.t.Fatal(err)
	}
	return now
}

// since is when the daemon has seen a condition become what it is.
func (m *Machine) since(condition string) time.Time {
	m.t.Helper()
	var status struct {
		Conditions []struct {
			Code  string
			Since time.Time
		}
	}
	if err := json.Unmarshal([]byte(m.Run(curl+daemonURL+"/v1/status")), &status); err != nil {
		m.t.Fatal(err)
	}
	for _, c := range status.Conditions {
		if c.Code == condition {
			return c.Since
		}
	}
	m.t.Fatalf("status has no condition %s", condition)
	return time.Time{}
}

func (m *Machine) checkWell(f failure) {
	m.t.Helper()
	m.Eventually(time.Minute, "well after "+f.name, func() error {
		if text, code := m.healthz(); code != "200" || strings.Contains(text, f.said) {
			return fmt.Errorf("status %s: %s", code, text)
		}
		return nil
	})
}

// containerStarts is what the daemon has counted.
func (m *Machine) containerStarts() (starts int) {
	m.t.Helper()
	const name = "luksmediad_synapse_container_starts_total "
	line := m.Run(curl + daemonURL + "/metrics | grep '^" + name + "'")
	if _, err := fmt.Sscanf(line, name+"%d", &starts); err != nil {
		m.t.Fatalf("%q: %v", line, err)
	}
	return starts
}

// checkAnswers uploads a picture and asks for its thumbnail, and for that of an old one.
func (m *Machine) checkAnswers(f failure, id string) {
	m.t.Helper()
	const status = "--output /run/answer --write-out '%{http_code}' --silent --max-time 60 "
	thumbnail := func(id string) string {
		return m.Run("curl " + status + authorization + `"` + synapseURL + "/_matrix/client/v1/media/thumbnail/" + id + `?width=96&height=96&method=crop"`)
	}
	if f.old != "" {
		m.requireStatus(f, "the old thumbnail", thumbnail(id), f.old)
	}
	if f.upload == "" {
		return
	}
	code := m.Pipe(bytes.NewReader(newPicture(m.t)), "curl "+status+"--data-binary @- --header 'Content-Type: image/png' "+authorization+
		synapseURL+"/_matrix/media/v3/upload?filename=failure.png")
	m.requireStatus(f, "the upload", code, f.upload)
	if f.thumbnail != "" {
		m.requireStatus(f, "the thumbnail", thumbnail("$(sed 's,.*mxc://\\([^\"]*\\)\".*,\\1,' /run/answer)"), f.thumbnail)
	}
}

func (m *Machine) requireStatus(f failure, what, code, want string) {
	m.t.Helper()
	if code != want {
		m.t.Errorf("%s: %s gives %s instead of %s: %s", f.name, what, code, want, m.Run("head --bytes=1000 /run/answer"))
	}
}
