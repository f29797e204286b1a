//go:build boot

package boot

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	clientScript = "/root/client"
	clientLog    = "/root/client.log"
)

// client uploads all the time, and writes down what Synapse has confirmed. That is on the disk then: Synapse syncs its database and not its
// files, so that the last few seconds before a power cut are nobody's to keep.
const client = `#!/bin/bash
while sleep 2; do
    { : </dev/tcp/` + synapseHost + `/` + synapsePort + `; } 2>/dev/null || continue # costs less than curl while Synapse starts
    head --bytes=20000 /dev/urandom >/run/upload
    answer=$(` + curl + `--data-binary @/run/upload --header 'Content-Type: application/octet-stream' ` + authorization + synapseURL + `/_matrix/media/v3/upload?filename=client) &&
        sync --file-system ` + mediaStore + ` &&
        echo "$(grep --only-matching 'mxc://[^"]*' <<<"$answer") $(sha256sum </run/upload)" >>` + clientLog + ` && sync ` + clientLog + `
done
`

// startClient has somebody upload until the machine goes off.
func (m *Machine) startClient() {
	m.t.Helper()
	m.write(clientScript, client)
	m.Run("systemd-run --unit=client bash " + clientScript)
}

// checkClient wants all that was ever confirmed to be there, and says how much that is.
func (m *Machine) checkClient(when string) int {
	m.t.Helper()
	said := m.long(`lost=0 all=0
		while read -r id sum _; do
			found=$(` + curl + authorization + synapseURL + `/_matrix/client/v1/media/download/${id#mxc://} | sha256sum)
			[ "$found" = "$sum  -" ] || { echo "$id"; lost=$((lost + 1)); }
			all=$((all + 1))
		done <` + clientLog + `
		echo $all`)
	lines := strings.Fields(said)
	count, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil || len(lines) > 1 {
		m.t.Errorf("%s: of the client's uploads are lost: %v", when, lines)
	}
	return count
}

// uploadAround uploads a file of which the second half comes only when the command, of which it returns what it said, has succeeded.
func (m *Machine) uploadAround(command string) string {
	m.t.Helper()
	return m.long(`head --bytes=300000 /dev/urandom >/run/halves
		answer=$({ head --bytes=150000 /run/halves; { ` + command + `; } >/run/said 2>&1 && tail --bytes=150000 /run/halves; } |
			` + curl + `--max-time 500 --request POST --upload-file - --header 'Content-Length: 300000' --header 'Transfer-Encoding:' \
				--header 'Content-Type: application/octet-stream' ` + authorization + synapseURL + `/_matrix/media/v3/upload?filename=halves)
		cat /run/said
		id=$(grep --only-matching 'mxc://[^"]*' <<<"$answer") && sum=$(sha256sum </run/halves) &&
			[ "$(` + curl + authorization + synapseURL + `/_matrix/client/v1/media/download/${id#mxc://} | sha256sum)" = "$sum" ] &&
			echo "$id $sum" >>` + clientLog)
}

// cutAt begins an operation on the store and cuts the power when it is in one of the steps.
func (m *Machine) cutAt(command string, steps ...string) {
	m.t.Helper()
	m.Run("systemctl reset-failed move.service 2>/dev/null; systemd-run --unit=move --property=Restart=no " + command)
	m.awaitStep("media", steps...)
	m.Cut()
}

// awaitStep waits until an operation on the store is in one of the steps.
func (m *Machine) awaitStep(store string, steps ...string) {
	m.t.Helper()
	// The shell itself reads: what looks must not take the emulated processor from what it looks at.
	m.Run(fmt.Sprintf(`steps='"store":"%s","step":"(%s)"'
	for i in $(seq 1500); do
		{ read -r progress </run/luksmediad/synapse-media.migrate.json; } 2>/dev/null
		[[ $progress =~ $steps ]] && exit
		sleep 0.05
	done
	echo "$progress"; journalctl --unit move.service; exit 1`, store, strings.Join(steps, "|")))
}

// loseTerminal begins an operation on the store in a terminal, which is gone as soon as it is in one of the steps.
func (m *Machine) loseTerminal(command, store string, steps ...string) {
	m.t.Helper()
	terminal := start(m.t, filepath.Join(m.t.ArtifactDir(), "terminal.log"), "ssh", append(m.sshArguments("-tt"), command)...)
	defer terminal.kill()
	m.awaitStep(store, steps...)
}
