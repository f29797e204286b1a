//go:build boot

package boot

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// failure is something of which Synapse's own /health says nothing.
type failure struct {
	name     string
	do, undo string
	// upload and thumbnail are what Synapse answers to a new picture; empty: it is not asked.
	upload, thumbnail string
	// said and next are what /healthz?verbose has to say.
	said, next string
}

const (
	volumeRoot = "/var/lib/luksmediad/volumes/synapse-media"

	// left is what others than root can use. The picture takes 19 blocks of 4 KiB, and its folders two.
	leaveBlocks = `fill() {
		left=$(df --output=avail --block-size=4K ` + mediaStore + ` | tail --lines=1)
		fallocate --length $(((left - $1) * 4096)) ` + mediaStore + `/filler-$1
	}
	fill 100; fill %d; df ` + mediaStore
	removeFillers = "rm " + mediaStore + "/filler-*"

	canaryOriginal = `id=$(grep --only-matching 'mxc://[^"]*' ` + volumeRoot + `/.luksmediad/canary.json); id=${id##*/}; original=` +
		mediaStore + `/local_content/${id:0:2}/${id:2:2}/${id:4}; `

	// The daemon would mount the store again before Docker has started the container.
	startEarly = `systemctl kill --signal=SIGSTOP luksmediad && umount ` + mediaStore + `
	docker run --detach --name early --network none --volume ` + synapseData + `:/data synapse sleep 1000
	systemctl kill --signal=SIGCONT luksmediad`
)

// failures is the table of what goes wrong in a media store, as far as luksmediad does not prevent it.
func failures() []failure {
	return []failure{
		{"nothing left", fmt.Sprintf(leaveBlocks, 0), removeFillers, "500", "",
			"[-]space failed: no_space", "luksmediad grow"},
		{"room for the original only", fmt.Sprintf(leaveBlocks, 22), removeFillers, "200", "400",
			"[-]space failed: no_space", "luksmediad grow"},
		{"read-only", "mount -o remount,ro " + volumeRoot, "mount -o remount,rw " + volumeRoot, "500", "",
			"[-]write failed: read_only", "journalctl -k"},
		{"original unreadable", canaryOriginal + "chmod 0 $original", canaryOriginal + "chmod 644 $original", "200", "200",
			"[-]thumbnail failed: refused", "docker logs"},
		{"container from before the mount", startEarly, "docker rm --force early", "", "",
			"[-]containers failed: container_stale", "docker restart early"},
	}
}

// checkFailures has a real Synapse fail in each of these ways while its /health says OK. The probe that has to notice does so within an interval,
// says what to type, and is well again by itself.
func (m *Machine) checkFailures() {
	for _, f := range failures() {
		m.t.Logf("%s: %s", f.name, m.Run("{ "+f.do+"; } 2>&1"))
		m.checkAnswers(f)
		m.Eventually(time.Minute, f.name+" is noticed", func() error {
			text, _ := m.healthz()
			if _, below, found := strings.Cut(text, f.said); !found || !strings.Contains(below, f.next) {
				return fmt.Errorf("%s", text)
			}
			return nil
		})
		if said := m.Run(curl + synapseURL + "/health"); !strings.Contains(said, "OK") {
			m.t.Errorf("%s: Synapse itself says %q", f.name, said)
		}
		m.Run(f.undo)
		m.Eventually(time.Minute, "well after "+f.name, func() error {
			if text, code := m.healthz(); code != "200" || strings.Contains(text, f.said) {
				return fmt.Errorf("status %s: %s", code, text)
			}
			return nil
		})
	}
	m.checkEncrypted() // the unmounted store is mounted again
}

// checkAnswers uploads a picture and asks for its thumbnail.
func (m *Machine) checkAnswers(f failure) {
	if f.upload == "" {
		return
	}
	status := "--output /run/answer --write-out '%{http_code}' --silent --max-time 60 "
	code := m.Pipe(bytes.NewReader(newPicture(m.t)), "curl "+status+"--data-binary @- --header 'Content-Type: image/png' "+authorization+
		synapseURL+"/_matrix/media/v3/upload?filename=failure.png")
	if code != f.upload {
		m.t.Errorf("%s: the upload gives %s instead of %s: %s", f.name, code, f.upload, m.Run("cat /run/answer"))
	}
	if f.thumbnail == "" {
		return
	}
	code = m.Run(`id=$(sed 's,.*mxc://\([^"]*\)".*,\1,' /run/answer); curl ` + status + authorization +
		`"` + synapseURL + `/_matrix/client/v1/media/thumbnail/$id?width=96&height=96&method=crop"`)
	if code != f.thumbnail {
		m.t.Errorf("%s: the thumbnail gives %s instead of %s", f.name, code, f.thumbnail)
	}
}
