package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"luksmediad/test/golden"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func eachInput(t *testing.T, dir string, test func(t *testing.T, path string, content []byte)) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			test(t, path, content)
		})
	}
}

func TestEffectiveConfiguration(t *testing.T) {
	eachInput(t, "valid", func(t *testing.T, path string, content []byte) {
		c, err := Parse("config.yaml", content)
		if err != nil {
			t.Fatal(err)
		}
		golden.Compare(t, strings.TrimSuffix(path, ".yaml")+".golden", marshal(t, c))
	})
}

func TestEveryProblemAtOnce(t *testing.T) {
	eachInput(t, "invalid", func(t *testing.T, path string, content []byte) {
		c, err := Parse("config.yaml", content)
		if err == nil {
			t.Fatalf("was taken: %+v", c)
		}
		golden.Compare(t, strings.TrimSuffix(path, ".yaml")+".golden", err.Error()+"\n")
	})
}

func TestSingleProblems(t *testing.T) {
	tests := []struct{ content, want string }{
		{"volume: {name: synapse_media}", `:1:16: volume.name: "synapse_media" is not a name of 1 to 63 lower-case letters, digits and dashes that starts with a letter or digit; for example synapse-media`},
		{"volume: {name: -a}", `"-a" is not a name`},
		{"volume: {name: ''}", `"" is not a name`},
		{"volume: {container: synapse.luks}", `:1:21: volume.container: "synapse.luks" is not an absolute path; for example /var/lib/luksmediad/synapse-media.luks`},
		{"volume: {container: /dev}", `"/dev" lies in /dev`},
		{"volume: {container: /dev/../etc}", `"/dev/../etc" is not in its shortest form, "/etc"`},
		{"volume: {container: /proc/x.luks}", `"/proc/x.luks" lies in /proc`},
		{"volume: {container: /srv/media/x.luks}", `"/srv/media/x.luks" lies inside the path of stores[0], "/srv/media"`},
		{"volume: {container: /var/lib/luksmediad/volumes/x/y}", `lies in /var/lib/luksmediad/volumes, where volumes are mounted`},
		{"volume: {size: 50G}", `"50G" has an unknown unit; known are MiB, GiB and TiB; for example 50GiB`},
		{"volume: {size: 50GB}", `"50GB" has an unknown unit`},
		{"volume: {size: 1.5GiB}", `"1.5GiB" is not a whole number with a unit`},
		{"volume: {size: -1GiB}", `"-1GiB" is not a whole number with a unit`},
		{"volume: {size: 31MiB}", `"31MiB" is less than 32MiB`},
		{"volume: {size: 9999999TiB}", `"9999999TiB" is too large`},
		{"volume: {size: 99999999999999999999MiB}", `is not a whole number with a unit`},
		{"volume: {size: 100MiB, filesystem: xfs}", `volume.size: "100MiB" is less than xfs needs, 320MiB; for example 1GiB`},
		{"volume: {filesystem: btrfs}", `"btrfs" is neither ext4 nor xfs; for example ext4`},
		{"probes: {keys: {interval: 30m}}", `probes.keys.interval: "30m" is less than 1h0m0s; for example 24h`},
		{"probes: {keys: {interval: 48h, proven_within: 24h}}", `probes.keys.proven_within: "24h0m0s" is less than the interval, 48h0m0s; for example 48h0m0s`},
		{"probes: {keys: {proven_within: 1y}}", `"1y" is not a duration`},
		{"probes: {space: {warn_at: 90}}", `probes.space.warn_at: "90" is not a whole number from 1% to 100%; for example 90%`},
		{"probes: {space: {warn_at: 0%}}", `"0%" is not a whole number`},
		{"probes: {space: {warn_at: 101%}}", `"101%" is not a whole number`},
		{"probes: {space: {full_within: 0s}}", `"0s" is less than 1h0m0s`},
		{"store: []", `:1:1: store: unknown key; the nearest known key is "stores"`},
		{"gate: {scope: docker}", `:1:1: gate: unknown key; known are: http, probes, stores, unlock, volume`},
		{"http: {listen: ''}", `"" is not an IP address and a port`},
		{"http: {listen: ':10165'}", `":10165" is not an IP address and a port`},
		{"http: {listen: 'localhost:10165'}", `"localhost:10165" is not an IP address and a port`},
		{"http: {listen: '[::]:10165'}", `"[::]:10165" is not a loopback address, and there is no http.web_config`},
		{"http: {web_config: web.yaml}", `"web.yaml" is not an absolute path`},
		{"http: {web_config: /srv/media/web.yaml}", `lies inside the path of stores[0]`},
		{"http: {listen: '127.0.0.1:0'}", `"127.0.0.1:0" has port 0`},
		{"http: {listen: 127.0.0.1:1, listen: 127.0.0.1:2}", `:1:29: http.listen: a second value; the first is in line 2`},
		{"unlock: []", `:1:1: unlock: there is no key source; for example [{tpm2: {}}]`},
		{"unlock: [{}]", `:1:10: unlock[0]: needs exactly one of: clevis, command, credential, keyfile, passphrase, tpm2; for example {tpm2: {}}`},
		{"unlock: [{tpm2: {}, keyfile: {}}]", `unlock[0]: needs exactly one of`},
		{"unlock: [{fido2: {}}]", `unlock[0].fido2: unknown key; known are: clevis, command, credential, keyfile, passphrase, tpm2`},
		{"unlock: [{tpm2: {bank: SHA256}}]", `unlock[0].tpm2.bank: "SHA256" is none of sha1, sha256, sha384, sha512; for example sha256`},
		{"unlock: [{tpm2: {wait: 30}}]", `unlock[0].tpm2.wait: "30" has no unit; for example 30s`},
		{"unlock: [{tpm2: {wait: 601s}}]", `unlock[0].tpm2.wait: "601s" is more than 10m0s`},
		{"unlock: [{tpm2: {pin: 0123}}]", `unlock[0].tpm2.pin: is neither none nor ask nor the path of a file that holds the PIN; for example ask`},
		{"unlock: [{tpm2: {pin: /proc/self/fd/0}}]", `"/proc/self/fd/0" lies in /proc`},
		{"unlock: [{command: {run: []}}]", `unlock[0].command.run: is missing; for example [/usr/local/bin/media-key]`},
		{"unlock: [{command: {run: [sh, -c, key]}}]", `unlock[0].command.run[0]: "sh" is not an absolute path; for example /usr/local/bin/media-key`},
		{`unlock: [{command: {run: [/bin/key, "a\0b"]}}]`, `unlock[0].command.run[1]: has a NUL byte`},
		{"unlock: [{credential: {name: .key}}]", `unlock[0].credential.name: ".key" is not the name of a credential; for example luksmediad.key`},
		{"unlock: [{passphrase: {timeout: 0s}}]", `unlock[0].passphrase.timeout: "0s" is less than 1s; for example 60s`},
		{"unlock: [{command: {run: [/a, b]}}, {command: {run: [/a, b], timeout: 5s}}]", `unlock[1]: is the same source as unlock[0]`},
		{"unlock: [{tpm2: {}}, {keyfile: {}}, {tpm2: {pcrs: []}}]", `unlock[2]: is the same source as unlock[0]`},
		{"unlock: [{keyfile: {path: key}}]", `unlock[0].keyfile.path: "key" is not an absolute path; for example /root/.luks-media.key`},
		{"unlock: [{keyfile: {path: /srv/media/key}}]", `lies inside the path of stores[0]`},
		{"unlock: [{keyfile: {path: /var/lib/luksmediad/volumes/a/key}}]", `where volumes are mounted`},
		{"unlock: [{keyfile: {path: /var/lib/luksmediad/synapse-media.luks}}]", `is the container`},
		{"unlock: [{tpm2: {device: /dev/tpm0}}]", `unlock[0].tpm2.device: "/dev/tpm0" is neither auto nor a TPM resource manager device nor a TCTI of swtpm; for example auto`},
		{"unlock: [{tpm2: {device: 'swtpm:path=run/s'}}]", `is neither auto`},
		{"unlock: [{tpm2: {pcrs: [-1]}}]", `unlock[0].tpm2.pcrs[0]: "-1" is not the number of a PCR, 0 to 23; for example 7`},
		{"unlock: [{tpm2: {pcrs: [07]}}]", `"07" is not the number of a PCR`},
		{"unlock: [{tpm2: {pcrs: 7}}]", `unlock[0].tpm2.pcrs: "7" stands where a list is expected; for example [7, 14]`},
		{"unlock: [{tpm2: {reseal: yes}}]", `unlock[0].tpm2.reseal: "yes" is neither true nor false; for example false`},
		{"unlock: [{tpm2: {reseal: true}}, {tpm2: {device: /dev/tpmrm1}}]", `unlock[0].tpm2.reseal: unlock[1] is another TPM; for example false`},
		{"probes: {interval: 500ms}", `"500ms" is less than 1s`},
		{"probes: {interval: 25h}", `"25h" is more than 24h0m0s`},
		{"probes: {interval: often}", `"often" is not a duration; for example 60s`},
		{"probes: {timeout: 10}", `probes.timeout: "10" has no unit; for example 10s`},
		{"probes: {interval: 5s, timeout: 6s}", `probes.timeout: "6s" is more than the interval, 5s; for example 5s`},
		{"probes: {synapse: {url: 'ftp://h'}}", `"ftp://h" is not an http or https URL with a host`},
		{"probes: {synapse: {url: 'http://h/_matrix'}}", `has more than scheme, host and port`},
		{"probes: {synapse: {url: 'http://h:p:q'}}", `probes.synapse.url: is not a URL`},
		{"probes: {synapse: {token: abc}}", `probes.synapse.token: unknown key; known are: admin_token_file, homeserver_config, store, token_file, url`},
		{"probes: {synapse: {store: other}}", `probes.synapse.store: "other" is not the name of a store; for example media`},
	}
	for _, test := range tests {
		_, err := Parse("config.yaml", []byte("stores: [{path: /srv/media}]\n"+test.content))
		want := strings.Replace(test.want, ":1:", "config.yaml:2:", 1)
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", test.content, err, want)
		}
	}
}

func TestStoreProblems(t *testing.T) {
	tests := []struct{ stores, want string }{
		{"[]", `config.yaml:1:1: stores: there is no store; for example [{path: ` + examplePath + `}]`},
		{"[{name: media}]", `config.yaml:1:10: stores[0].path: is missing; for example ` + examplePath},
		{"[{path: .}]", `"." is not an absolute path`},
		{"[{path: /}]", `"/" is the root directory`},
		{"[{path: /srv/../etc}]", `"/srv/../etc" is not in its shortest form, "/etc"`},
		{"[{path: /srv/}]", `"/srv/" is not in its shortest form, "/srv"`},
		{"[{path: /proc/self}]", `"/proc/self" lies in /proc`},
		{`[{path: "/srv/a\nb"}]`, `"/srv/a\nb" has a control character`},
		{"[{path: /" + strings.Repeat("a", 4095) + "}]", `is longer than 4095 bytes`},
		{"[{path: /var/lib}]", `"/var/lib" and luksmediad's own directory /var/lib/luksmediad overlap`},
		{"[{path: /var/lib/luksmediad/media}]", `own directory /var/lib/luksmediad overlap`},
		{"[{path: /a}, {path: /a, name: b}]", `stores[1].path: "/a" is the path of stores[0] too`},
		{"[{path: /a}, {path: /a/b, name: b}]", `stores[1].path: "/a/b" lies inside the path of stores[0], "/a"`},
		{"[{path: /a/b}, {path: /a, name: b}]", `stores[1].path: "/a" contains the path of stores[0], "/a/b"`},
		{"[{path: /a}, {path: /b}]", `stores[1].name: "media" is the name of stores[0] too; for example media-2`},
		{"[{path: /a, owner: 991}]", `"991" is not a numeric user and group, UID:GID; for example 991:991`},
		{"[{path: /a, owner: 'synapse:synapse'}]", `"synapse:synapse" is not a numeric user and group`},
		{"[{path: /a, owner: '4294967295:1'}]", `"4294967295:1" is out of range; the largest id is 4294967294`},
		{"[{path: /a, service: {}}]", `stores[0].service: needs exactly one of: docker, compose, systemd; for example {docker: synapse}`},
		{"[{path: /a, service: {docker: a, systemd: b.service}}]", `stores[0].service: needs exactly one of`},
		{"[{path: /a, service: {docker: a/b}}]", `"a/b" is not the name of a Docker container`},
		{"[{path: /a, service: {docker: --help}}]", `"--help" is not the name of a Docker container`},
		{"[{path: /a, service: {systemd: a.mount}}]", `"a.mount" is not the name of a systemd service or target`},
		{"[{path: /a, service: {compose: {}}}]", `stores[0].service.compose: needs a service, and exactly one of: project, file`},
		{"[{path: /a, service: {compose: {project: a, file: /f, service: s}}}]", `stores[0].service.compose: needs a service, and exactly one of`},
		{"[{path: /a, service: {compose: {project: a, service: s}, docker: a}}]", `stores[0].service: needs exactly one of`},
		{"[{path: /a, service: {podman: a}}]", `stores[0].service.podman: unknown key; known are: compose, docker, systemd`},
		{"[{path: /a, readonly: true}]", `stores[0].readonly: unknown key; known are: name, owner, path, service`},
	}
	for _, test := range tests {
		_, err := Parse("config.yaml", []byte("stores: "+test.stores))
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\n got %v\nwant %s", test.stores, err, test.want)
		}
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	_, err := Parse("config.yaml", []byte("stores: [{path: /a}]\nprobes: {synapse: {url: 'http://admin:hunter2@h', access_token: hunter2}}"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestProblemsAreErrorsOfTheirOwn(t *testing.T) {
	_, err := Parse("config.yaml", []byte("volume: {size: 50}"))
	all, ok := errors.AsType[*Error](fmt.Errorf("cannot start: %w", err))
	if !ok || len(all.Problems) != 2 {
		t.Fatalf("got %#v", err)
	}
	want := Problem{File: "config.yaml", Line: 1, Column: 16, Key: "volume.size", Reason: `"50" has no unit`, Example: "50GiB"}
	if diff := cmp.Diff(want, all.Problems[1]); diff != "" {
		t.Error(diff)
	}
	if _, ok := errors.AsType[Problem](err); !ok {
		t.Error("no Problem in the error's tree")
	}
}

func TestNamesDerivedFromVolume(t *testing.T) {
	v := Volume{Name: "synapse-media"}
	if v.Mapping() != "luksmediad-synapse-media" || v.Root() != "/var/lib/luksmediad/volumes/synapse-media" {
		t.Errorf("got %s, %s", v.Mapping(), v.Root())
	}
}

// A block device has a size of its own.
// Two policies of one TPM may be sealed anew; by itself none is.
func TestReseal(t *testing.T) {
	c, err := Parse("config.yaml", []byte("stores: [{path: /srv/media}]\nunlock: [{tpm2: {reseal: true}}, {tpm2: {pcrs: [7]}}]"))
	if err != nil {
		t.Fatal(err)
	}
	if !c.Unlock[0].TPM2.Reseal || c.Unlock[1].TPM2.Reseal {
		t.Errorf("%+v, %+v", c.Unlock[0].TPM2, c.Unlock[1].TPM2)
	}
}

func TestDeviceAsContainer(t *testing.T) {
	for _, path := range []string{"/dev/sdb1", "/dev/disk/by-id/nvme-eui.0123", "/dev/vg/media"} {
		c, err := Parse("config.yaml", []byte("volume: {container: "+path+", filesystem: xfs}\nstores: [{path: /srv/media}]\n"))
		if err != nil || c.Volume.Container != path {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestKind(t *testing.T) {
	for kind, source := range sources() {
		if source.Kind() != kind {
			t.Errorf("got %s, want %s", source.Kind(), kind)
		}
	}
	if got := (KeySource{}).Kind(); got != "" {
		t.Errorf("no source is %q", got)
	}
}

// sources has every kind of source, as it is when nothing is said.
func sources() map[string]KeySource {
	command := defaultCommand()
	command.Run = []string{"/bin/key"}
	return map[string]KeySource{
		"tpm2": {TPM2: defaultTPM2()}, "keyfile": {Keyfile: defaultKeyfile()}, "credential": {Credential: defaultCredential()},
		"clevis": {Clevis: defaultClevis()}, "command": {Command: command}, "passphrase": {Passphrase: defaultPassphrase()},
	}
}

func TestPatience(t *testing.T) {
	asking := defaultTPM2()
	asking.PIN = AskPIN
	for want, source := range map[time.Duration]KeySource{90 * time.Second: {TPM2: asking}, 0: {Credential: defaultCredential()}} {
		if got := source.Patience(); got != want {
			t.Errorf("%s: %v, want %v", source.Kind(), got, want)
		}
	}
	for kind, source := range sources() {
		if (source.Patience() == 0) != (kind == "credential") {
			t.Errorf("%s: %v", kind, source.Patience())
		}
	}
}

func TestTimeoutFollowsShortInterval(t *testing.T) {
	c, err := Parse("config.yaml", []byte("stores: [{path: /a}]\nprobes: {interval: 2s}"))
	if err != nil || c.Probes.Timeout != 2*time.Second {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestSuggest(t *testing.T) {
	known := []string{"container", "filesystem", "name", "size"}
	for name, want := range map[string]string{
		"contaner":     `the nearest known key is "container"`,
		"Size":         `the nearest known key is "size"`,
		"file_system":  `the nearest known key is "filesystem"`,
		"names":        `the nearest known key is "name"`,
		"capacity":     "known are: container, filesystem, name, size",
		"":             "known are: container, filesystem, name, size",
		"containerpth": "known are: container, filesystem, name, size",
	} {
		if got := suggest(name, known); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"size", "size", 0}, {"siez", "size", 2}, {"sze", "size", 1}, {"", "ab", 2}, {"name", "path", 3}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("%q %q: got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

func TestSizeText(t *testing.T) {
	for text, want := range map[string]Size{"1MiB": MiB, "1024MiB": GiB, "50GiB": 50 * GiB, "2TiB": 2 * TiB, "0MiB": 0} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for size, want := range map[Size]string{50 * GiB: "50GiB", 1536 * MiB: "1536MiB", 3 * TiB: "3TiB", 4096: "4096B", 0: "0B"} {
		if got := size.String(); got != want {
			t.Errorf("%d: got %s, want %s", size, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("stores: [{path: /srv/media}]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(path); err != nil || c.Stores[0].Path != "/srv/media" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestLoadRefusesFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]os.FileMode{"writable": 0o666, "group": 0o664} {
		if err := errors.Join(os.WriteFile(path(name), nil, 0o600), os.Chmod(path(name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path("large"), []byte(strings.Repeat("#", maxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, says string
		want       error
	}{
		{"absent", "absent: it is not there", ErrMissing},
		{"writable", "its mode is 0666, so that others than its owner can change it", ErrUnsafe},
		{"group", "its mode is 0664, so that others than its owner can change it", ErrUnsafe},
		{"large", "it is larger than 1048576 bytes", ErrUnsafe},
		{"fifo", "it is not a regular file", ErrUnsafe},
		{".", "it is not a regular file", ErrUnsafe},
	}
	for _, test := range tests {
		_, err := Load(path(test.name))
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
}

func marshal(t interface {
	Helper()
	Fatal(...any)
}, c *Config,
) string {
	t.Helper()
	content, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Whatever is written loads back to itself.
func TestMarshalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfig(t)
		content := marshal(t, c)
		again, err := Parse("config.yaml", []byte(content))
		if err != nil {
			t.Fatalf("%v\n%s", err, content)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatalf("%s\n%s", diff, content)
		}
	})
}

func drawConfig(t *rapid.T) *Config {
	name := rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,8}`)
	path := rapid.StringMatching(`/mnt/[a-zA-Z0-9 :#'"{}\[\],&*!|>%@\\é-]{1,12}[a-z]`)
	stores := rapid.SliceOfNDistinct(path, 1, 3, func(path string) string { return path }).Draw(t, "paths")
	c := withDefaults()
	c.Volume.Name = name.Draw(t, "name")
	c.Volume.Size = Size(rapid.Int64Range(320, 1<<30).Draw(t, "MiB")) * MiB
	c.Volume.Filesystem = rapid.SampledFrom([]Filesystem{Ext4, XFS}).Draw(t, "filesystem")
	for i, path := range stores {
		owner := Owner{rapid.IntRange(0, 1<<32-2).Draw(t, "uid"), rapid.IntRange(0, 1<<32-2).Draw(t, "gid")}
		service := rapid.SampledFrom([]*Service{nil, {Docker: "0x1.2"}, {Systemd: `a\x2db@1.service`}}).Draw(t, "service")
		c.Stores = append(c.Stores, Store{Name: fmt.Sprint("s", i), Path: path, Owner: owner, Service: service})
	}
	c.Unlock = rapid.SliceOfNDistinct(rapid.Custom(drawSource), 0, 6, KeySource.identity).Draw(t, "unlock")
	c.Probes.Interval = time.Duration(rapid.Int64Range(int64(time.Second), int64(24*time.Hour)).Draw(t, "interval"))
	if rapid.Bool().Draw(t, "synapse") {
		c.Probes.Synapse = defaultSynapse()
	}
	c.derive()
	return &c
}

func drawSource(t *rapid.T) KeySource {
	path := "/root/" + rapid.StringMatching(`[a-z0-9]{1,8}`).Draw(t, "path")
	wait := time.Duration(rapid.Int64Range(int64(time.Second), int64(10*time.Minute)).Draw(t, "wait"))
	switch rapid.SampledFrom(SourceKinds()).Draw(t, "kind") {
	case "tpm2":
		return KeySource{TPM2: &TPM2{
			Device: "auto", PCRs: []int{rapid.IntRange(0, 23).Draw(t, "pcr")}, Bank: rapid.SampledFrom([]Bank{SHA1, SHA256, SHA384, SHA512}).Draw(t, "bank"),
			PIN: rapid.SampledFrom([]string{NoPIN, AskPIN, path}).Draw(t, "pin"), Signature: rapid.SampledFrom([]string{AutoSignature, path}).Draw(t, "signature"),
			Wait: wait,
		}}
	case "keyfile":
		return KeySource{Keyfile: &Keyfile{Path: path, Wait: rapid.SampledFrom([]time.Duration{0, wait}).Draw(t, "none")}}
	case "credential":
		return KeySource{Credential: &Credential{Name: rapid.StringMatching(`[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,8}`).Draw(t, "name")}}
	case "clevis":
		return KeySource{Clevis: &Clevis{Timeout: wait}}
	case "command":
		arguments := rapid.SliceOf(rapid.StringMatching(`[a-z0-9 :#'"{}\[\],&*!|>%@\\é-]{0,9}`)).Draw(t, "arguments")
		return KeySource{Command: &Command{Run: append([]string{path}, arguments...), Timeout: wait}}
	}
	return KeySource{Passphrase: &Passphrase{Timeout: wait}}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.yaml", "testdata/invalid/*.yaml"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(content)
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := Parse("config.yaml", content)
		if err != nil {
			checkProblems(t, err)
			return
		}
		text := marshal(t, c)
		again, err := Parse("config.yaml", []byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Error(diff)
		}
	})
}

func checkProblems(t *testing.T, err error) {
	t.Helper()
	all, ok := errors.AsType[*Error](err)
	if !ok || len(all.Problems) == 0 {
		t.Fatalf("error is %T: %v", err, err)
	}
	for _, p := range all.Problems {
		if p.Reason == "" || strings.ContainsAny(p.Error(), "\n\r\x1b\x00") {
			t.Errorf("problem is not one line: %q", p.Error())
		}
	}
}

// A Compose service is known by its project or by its file, and waits for Docker's unit.
func TestComposeService(t *testing.T) {
	for text, want := range map[string]Compose{
		"{project: matrix, service: synapse}":        {Project: "matrix", Service: "synapse"},
		"{file: /srv/compose.yml, service: synapse}": {File: "/srv/compose.yml", Service: "synapse"},
	} {
		c, err := Parse("config.yaml", []byte("stores: [{path: /a, service: {compose: "+text+"}}]"))
		if err != nil {
			t.Fatal(err)
		}
		store := c.Stores[0]
		if *store.Service.Compose != want || store.Unit() != "docker.service" || !strings.Contains(store.Service.String(), "synapse") {
			t.Errorf("%s: %+v, unit %s", text, store.Service, store.Unit())
		}
	}
}
