//go:build boot

package boot

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" // what Synapse asks for
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Homeserver is the Synapse of the image on this machine's own processor, for what an emulated one would take too long to do. Its data is a
// private copy.
type Homeserver struct {
	t          *testing.T
	tree, data string
	url        string
	// mediaURL is where it answers what a worker for media does, and nothing else.
	mediaURL string
}

// registrationSecret lets a test have users.
const registrationSecret = "registration-secret-of-the-boot-test"

// startHomeserver returns once Synapse answers.
func startHomeserver(t *testing.T) *Homeserver {
	t.Helper()
	image := buildImage(t)
	h := &Homeserver{t: t, tree: filepath.Join(image, "synapse"), data: t.TempDir()}
	if out, err := exec.Command("cp", "--archive", filepath.Join(image, "data")+"/.", h.data).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	port, mediaPort := freePort(t), freePort(t)
	h.url, h.mediaURL = fmt.Sprintf("http://127.0.0.1:%d", port), fmt.Sprintf("http://127.0.0.1:%d", mediaPort)
	h.configure(port, mediaPort)
	args := h.inside("python3", "-m", "synapse.app.homeserver", "--config-path", "/data/homeserver.yaml")
	synapse := start(t, filepath.Join(t.ArtifactDir(), "synapse.log"), args[0], args[1:]...)
	t.Cleanup(synapse.kill)
	h.waitFor(synapse)
	return h
}

func (h *Homeserver) waitFor(synapse *process) {
	h.t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if err := synapse.exited(); err != nil {
			log, _ := os.ReadFile(filepath.Join(h.t.ArtifactDir(), "synapse.log"))
			h.t.Fatalf("Synapse: %v\n%s", err, log)
		}
		response, err := http.Get(h.url + "/health")
		if err == nil {
			response.Body.Close()
			return
		}
		if time.Since(begin) > time.Minute {
			h.t.Fatalf("Synapse does not answer: %v", err)
		}
	}
}

func (h *Homeserver) configure(port, mediaPort int) {
	h.t.Helper()
	name := filepath.Join(h.data, "homeserver.yaml")
	content, err := os.ReadFile(name)
	if err != nil {
		h.t.Fatal(err)
	}
	changed := strings.Replace(string(content), "port: 8008", fmt.Sprintf("port: %d", port), 1)
	if changed == string(content) {
		h.t.Fatal("homeserver.yaml has another port than 8008")
	}
	const listeners = "listeners:\n"
	media := fmt.Sprintf("  - {port: %d, bind_addresses: [127.0.0.1], type: http, tls: false, resources: [{names: [media]}]}\n", mediaPort)
	changed = strings.Replace(changed, listeners, listeners+media, 1)
	changed += "registration_shared_secret: " + registrationSecret + "\n"
	if err := os.WriteFile(name, []byte(changed), 0o600); err != nil { // it stays Synapse's
		h.t.Fatal(err)
	}
}

// inside is the command line of a program in Synapse's container, as Synapse's user. The machines beside it, which take longer, go first.
func (h *Homeserver) inside(command ...string) []string {
	return append([]string{"nice", "unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", `
		mount --bind "$2" "$1/data"
		mount -t proc proc "$1/proc"
		mount --rbind /dev "$1/dev"
		mount -t tmpfs tmpfs "$1/tmp"
		tree=$1
		shift 2
		chroot --userspec=991:991 "$tree" "$@"
		exit # and no exec: another user clears the signal by which --kill-child ends this shell and all below (PR_SET_PDEATHSIG(2const))`, "inside", h.tree, h.data}, command...)
}

// Store is where the media are.
func (h *Homeserver) Store() string { return filepath.Join(h.data, "media_store") }

// Files are those in the store.
func (h *Homeserver) Files() (names []string) {
	h.t.Helper()
	err := filepath.WalkDir(h.Store(), func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return names
}

// Rows counts those of every table of Synapse's database.
func (h *Homeserver) Rows() map[string]int {
	h.t.Helper()
	const count = `import json, sqlite3
database = sqlite3.connect("file:/data/homeserver.db?mode=ro", uri=True)
tables = [name for name, in database.execute("select name from sqlite_master where type = 'table'")]
print(json.dumps({name: database.execute(f'select count(*) from "{name}"').fetchone()[0] for name in tables}))`
	args := h.inside("python3", "-c", count)
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		h.t.Fatal(err)
	}
	var rows map[string]int
	if err := json.Unmarshal(out, &rows); err != nil {
		h.t.Fatal(err)
	}
	return rows
}

// NewAdmin registers a server admin and returns its access token, as register_new_matrix_user does (Synapse's Admin API, "Shared-Secret
// Registration").
func (h *Homeserver) NewAdmin(name string) string {
	h.t.Helper()
	const api, password = "/_synapse/admin/v1/register", "password"
	var asked struct{ Nonce string }
	h.call(http.MethodGet, api, nil, &asked)
	mac := hmac.New(sha1.New, []byte(registrationSecret))
	fmt.Fprintf(mac, "%s\x00%s\x00%s\x00admin", asked.Nonce, name, password)
	var registered struct {
		Token string `json:"access_token"`
	}
	h.call(http.MethodPost, api, map[string]any{
		"nonce": asked.Nonce, "username": name, "password": password, "admin": true, "mac": hex.EncodeToString(mac.Sum(nil)),
	}, &registered)
	if registered.Token == "" {
		h.t.Fatal("no access token")
	}
	return registered.Token
}

func (h *Homeserver) call(method, path string, body, into any) {
	h.t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		h.t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, bytes.NewReader(content))
	if err != nil {
		h.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		h.t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == http.StatusOK {
		err = json.Unmarshal(answer, into)
	}
	if err != nil || response.StatusCode != http.StatusOK {
		h.t.Fatalf("%s %s: %s: %v\n%s", method, path, response.Status, err, answer)
	}
}
