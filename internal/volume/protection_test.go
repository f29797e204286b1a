package volume

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/luks2"
)

// places is a machine on which files lie as the test says; what it does not name lies on disk sda.
type places struct {
	at      map[string][]mount.Carrier
	virtual bool
}

func (p places) Locate(path string) []mount.Carrier {
	if carriers, ok := p.at[path]; ok {
		return carriers
	}
	return []mount.Carrier{disk("sda")}
}

func (p places) Virtual() bool { return p.virtual }

func disk(name string) mount.Carrier { return mount.Carrier{Medium: mount.OnDisk, Name: name} }

func stick(name string) mount.Carrier {
	return mount.Carrier{Medium: mount.OnDisk, Name: name, Removable: true}
}

func encrypted(c mount.Carrier) mount.Carrier {
	c.Encrypted = []string{"cryptroot"}
	return c
}

const (
	testContainer = "/srv/media.luks"
	testKey       = "/keys/key"
)

func configured(sources ...config.KeySource) *config.Config {
	return &config.Config{Volume: config.Volume{Name: "media", Container: testContainer}, Unlock: sources}
}

func tpmSource(device string) config.KeySource {
	return config.KeySource{TPM2: &config.TPM2{Device: device}}
}

func fileSource(path string) config.KeySource {
	return config.KeySource{Keyfile: &config.Keyfile{Path: path}}
}

// assessed is the protection of a volume to be.
func assessed(c *config.Config, machine machine) Protection {
	a := newAssessment(c, machine)
	a.planned = true
	return a.protection()
}

// Where a key file lies beside the container decides what it protects against.
func TestProtectionByKeyFile(t *testing.T) {
	unresolved := mount.Carrier{Medium: mount.Unresolved, Name: "zfs", Why: "zfs at /keys: nothing is told"}
	network := mount.Carrier{Medium: mount.OnNetwork, Name: "nas:/keys"}
	memory := mount.Carrier{Medium: mount.InMemory, Name: "tmpfs"}
	list := func(carriers ...mount.Carrier) []mount.Carrier { return carriers }
	for name, test := range map[string]struct {
		key, container []mount.Carrier
		want           Level
	}{
		"the same disk":                       {list(disk("sda")), list(disk("sda")), LevelNoneSameDisk},
		"one disk of its mirror":              {list(disk("sdb")), list(disk("sda"), disk("sdb")), LevelNoneSameDisk},
		"a mirror, one disk shared":           {list(disk("sdb"), disk("sdc")), list(disk("sda"), disk("sdb")), LevelNoneSameDisk},
		"the same stick":                      {list(stick("sdc")), list(stick("sdc")), LevelNoneSameDisk},
		"shared beside something unknown":     {list(unresolved, disk("sda")), list(disk("sda")), LevelNoneSameDisk},
		"an overlay, one layer encrypted":     {list(encrypted(disk("sda")), disk("sda")), list(disk("sda")), LevelNoneSameDisk},
		"the same disk, encrypted":            {list(encrypted(disk("sda"))), list(disk("sda")), LevelInherited},
		"both in the same encryption":         {list(encrypted(disk("sda"))), list(encrypted(disk("sda"))), LevelInherited},
		"another disk":                        {list(disk("sdb")), list(disk("sda")), LevelDiskTheft},
		"another disk, encrypted":             {list(encrypted(disk("sdb"))), list(disk("sda")), LevelDiskTheft},
		"a built-in disk and a stick":         {list(disk("sdb"), stick("sdc")), list(disk("sda")), LevelDiskTheft},
		"a server and a built-in disk":        {list(network, disk("sdb")), list(disk("sda")), LevelDiskTheft},
		"a stick":                             {list(stick("sdc")), list(disk("sda")), LevelRemovable},
		"another machine":                     {list(network), list(disk("sda")), LevelNetwork},
		"another machine, and the container":  {list(network), list(network), LevelUnknown},
		"memory":                              {list(memory), list(disk("sda")), LevelUnknown},
		"not known":                           {list(unresolved), list(disk("sda")), LevelUnknown},
		"the container is not known":          {list(disk("sdb")), list(unresolved), LevelUnknown},
		"a stick, part of the container's is": {list(stick("sdc")), list(disk("sda"), unresolved), LevelUnknown},
		"encrypted beside something unknown":  {list(encrypted(disk("sda")), unresolved), list(disk("sda")), LevelUnknown},
	} {
		machine := places{at: map[string][]mount.Carrier{testKey: test.key, testContainer: test.container}}
		got := assessed(configured(fileSource(testKey)), machine)
		if got.Level != test.want || got.Source != "keyfile" || !strings.Contains(got.Text, testKey) {
			t.Errorf("%s: got %s (%s), want %s", name, got.Level, got.Text, test.want)
		}
	}
}

// The weakest way decides, in whatever order they are tried.
func TestProtectionByTheWeakest(t *testing.T) {
	machine := places{at: map[string][]mount.Carrier{"/other/key": {disk("sdb")}, "/stick/key": {stick("sdc")}}}
	for _, test := range []struct {
		want    Level
		source  string
		sources []config.KeySource
	}{
		{LevelSnapshot, "tpm2", []config.KeySource{tpmSource("auto")}},
		{LevelUnknown, "tpm2", []config.KeySource{tpmSource("swtpm:path=/run/tpm.sock")}},
		{LevelNoneSameDisk, "keyfile", []config.KeySource{tpmSource("auto"), fileSource(testKey)}},
		{LevelNoneSameDisk, "keyfile", []config.KeySource{tpmSource("swtpm:path=/run/tpm.sock"), fileSource(testKey)}},
		{LevelDiskTheft, "keyfile", []config.KeySource{tpmSource("auto"), fileSource("/other/key")}},
		{LevelRemovable, "keyfile", []config.KeySource{fileSource("/stick/key"), tpmSource("auto")}},
		{LevelDiskTheft, "keyfile", []config.KeySource{fileSource("/stick/key"), fileSource("/other/key")}},
		{LevelUnknown, "tpm2", []config.KeySource{tpmSource("swtpm:host=localhost,port=2321"), fileSource("/other/key")}},
	} {
		for range 2 {
			if got := assessed(configured(test.sources...), machine); got.Level != test.want || got.Source != test.source {
				t.Errorf("%v: got %s by %s, want %s by %s", test.sources, got.Level, got.Source, test.want, test.source)
			}
			slices.Reverse(test.sources)
		}
	}
}

// A source that is not known here must not pass for a safe one.
func TestProtectionByKind(t *testing.T) {
	a := newAssessment(configured(), places{})
	for kind, want := range map[string]Level{
		"passphrase": LevelPerson, "tpm2": LevelSnapshot, "keyfile": LevelUnknown, "credential": LevelUnknown, "clevis": LevelUnknown,
		"command": LevelUnknown, "carrier-pigeon": LevelUnknown, "": LevelUnknown,
	} {
		if got := a.wayOfKind(kind, "it"); got.level != want || got.source != kind || got.text == "" {
			t.Errorf("%q: %+v, want %s", kind, got, want)
		}
	}
}

// A keyslot opens the container although the configuration does not name its source any more.
func TestProtectionByRecord(t *testing.T) {
	for source, want := range map[string]Level{"recovery": LevelSnapshot, "tpm2": LevelSnapshot, "keyfile": LevelUnknown, "command": LevelUnknown} {
		a := newAssessment(configured(tpmSource("auto")), places{})
		a.record = &Record{Keyslots: []Keyslot{{Slot: 0, Source: "recovery"}, {Slot: 1, Source: "tpm2"}, {Slot: 2, Source: source}}}
		got := a.protection()
		if got.Level != want || want == LevelUnknown && !strings.Contains(got.Text, "keyslot 2") {
			t.Errorf("keyslot of %s: %+v, want %s", source, got, want)
		}
	}
}

// A key file that is not there may be anywhere.
func TestProtectionByMissingKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	a := newAssessment(configured(fileSource(path)), places{at: map[string][]mount.Carrier{path: {disk("sdb")}}})
	if got := a.protection(); got.Level != LevelUnknown || !strings.Contains(got.Text, "is not there") {
		t.Errorf("missing: %+v", got)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := a.protection(); got.Level != LevelDiskTheft {
		t.Errorf("there: %+v", got)
	}
}

// security.md A1: whoever can change the root filesystem gets what comes without a person.
func TestProtectionByRoot(t *testing.T) {
	memory := mount.Carrier{Medium: mount.InMemory, Name: "tmpfs"}
	verified := mount.Carrier{Medium: mount.OnDisk, Name: "sda", Verified: true}
	const plain, maybe = "root filesystem is neither encrypted nor verified: whoever boots this machine with a changed one gets the key",
		"whether the root filesystem is encrypted or verified cannot be told; if not, whoever boots this machine with a changed one gets the key"
	for _, test := range []struct {
		root    []mount.Carrier
		want    RootProtection
		warning string
	}{
		{[]mount.Carrier{disk("sda")}, RootPlain, plain},
		{[]mount.Carrier{encrypted(disk("sda")), disk("sdb")}, RootPlain, plain},
		{[]mount.Carrier{disk("sda"), encrypted(disk("sdb"))}, RootPlain, plain},
		{[]mount.Carrier{encrypted(disk("sda"))}, RootEncrypted, ""},
		{[]mount.Carrier{verified}, RootVerified, ""},
		{[]mount.Carrier{verified, memory}, RootVerified, ""}, // an overlay whose upper layer is gone after a boot
		{[]mount.Carrier{memory}, RootUnknown, maybe},
		{[]mount.Carrier{{Medium: mount.OnNetwork, Name: "nas:/root"}}, RootUnknown, maybe},
		{[]mount.Carrier{encrypted(disk("sda")), {Medium: mount.Unresolved}}, RootUnknown, maybe},
	} {
		got := assessed(configured(tpmSource("auto")), places{at: map[string][]mount.Carrier{"/": test.root}})
		if got.Root != test.want || got.Warning != test.warning {
			t.Errorf("%v: %s, %q; want %s, %q", test.root, got.Root, got.Warning, test.want, test.warning)
		}
	}
}

// header is one whose tokens are given, each for a keyslot of its own.
func header(types []string, tokens ...string) *luks2.Header {
	h := &luks2.Header{Metadata: luks2.Metadata{
		Segments: map[int]luks2.Segment{0: {}}, Tokens: map[int]luks2.Token{},
	}}
	var keyslots []int
	for i, token := range tokens {
		h.Metadata.Tokens[i] = luks2.Token{Type: types[i], Keyslots: []int{i}, Raw: json.RawMessage(token)}
		keyslots = append(keyslots, i)
	}
	h.Metadata.Digests = map[int]luks2.Digest{0: {Segments: []int{0}, Keyslots: keyslots}}
	return h
}

// The PCRs are said where the TPM decides and where the root filesystem is open.
func TestProtectionNamesPCRs(t *testing.T) {
	for name, want := range map[string]struct {
		pcrs []int
		text string
	}{"none": {[]int{}, "no PCRs"}, "pcr7": {[]int{7}, "PCRs 7"}} {
		token, err := os.ReadFile("../../pkg/unlock/tpm2/testdata/systemd257-" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		a := newAssessment(configured(tpmSource("auto")), places{virtual: true})
		a.header = header([]string{"systemd-tpm2"}, string(token))
		got := a.protection()
		if diff := cmp.Diff(want.pcrs, got.PCRs); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if !strings.Contains(got.Text, "bound to "+want.text) || !strings.HasSuffix(got.Warning, "; in the TPM it is bound to "+want.text) {
			t.Errorf("%s: %q, %q", name, got.Text, got.Warning)
		}
		if !strings.Contains(got.Text, "virtual machine") {
			t.Errorf("%s: nothing about the TPM of a virtual machine: %q", name, got.Text)
		}
	}
}

// protected is the header of a JWE as clevis makes it.
func protected(pin string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"dir","clevis":` + pin + `,"enc":"A256GCM"}`))
}

func sss(threshold int, pins ...string) string {
	for i, pin := range pins {
		pins[i] = fmt.Sprintf("%q", protected(pin)+"..iv.ciphertext.tag")
	}
	return fmt.Sprintf(`{"pin":"sss","sss":{"jwe":[%s],"p":"prime","t":%d}}`, strings.Join(pins, ","), threshold)
}

// What a token of clevis is bound to stands in its JWE; of a split key the weakest shares that are enough decide.
func TestProtectionByClevis(t *testing.T) {
	const tang, tpm, other = `{"pin":"tang","tang":{"url":"http://tang"}}`, `{"pin":"tpm2","tpm2":{"pcr_ids":"7"}}`, `{"pin":"yubikey"}`
	deep := tang
	for range maxShares {
		deep = sss(1, deep)
	}
	for pin, want := range map[string]Level{
		tang: LevelNetwork, tpm: LevelSnapshot, other: LevelUnknown, `{}`: LevelUnknown, `7`: LevelUnknown,
		sss(1, tang, tpm): LevelNetwork, sss(2, tang, tpm): LevelSnapshot, sss(1, tang, other): LevelUnknown, sss(2, other, tang): LevelNetwork,
		sss(0, tang): LevelUnknown, sss(3, tang, tpm): LevelUnknown, sss(1, sss(2, tang, tpm)): LevelSnapshot, deep: LevelUnknown,
	} {
		token := fmt.Sprintf(`{"type":"clevis","keyslots":["1"],"jwe":{"protected":%q}}`, protected(pin))
		if got := wayOfClevis(header([]string{"clevis"}, token), "key source clevis"); got.level != want {
			t.Errorf("%s: got %+v, want %s", pin, got, want)
		}
		both := header([]string{"clevis", "clevis"}, token, fmt.Sprintf(`{"jwe":{"protected":%q}}`, protected(other)))
		if got := wayOfClevis(both, "it"); got.level != LevelUnknown {
			t.Errorf("%s beside one that is not known: got %+v", pin, got)
		}
	}
	for name, h := range map[string]*luks2.Header{"no header": nil, "no token": header(nil), "no JSON": header([]string{"clevis"}, `"`)} {
		if got := wayOfClevis(h, "it"); got.level != LevelUnknown {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A key that is split needs the TPM if too few shares come without.
func TestClevisNeedsTPM(t *testing.T) {
	const tang, tpm, other = `{"pin":"tang","tang":{"url":"http://tang"}}`, `{"pin":"tpm2","tpm2":{"pcr_ids":"7"}}`, `{"pin":"yubikey"}`
	deep := tpm
	for range maxShares + 1 {
		deep = sss(1, deep)
	}
	for pin, want := range map[string]bool{
		tang: false, tpm: true, other: false, `{}`: false, `7`: false,
		sss(1, tang, tpm): false, sss(2, tang, tpm): true, sss(2, tang, tpm, other): false, sss(1, tpm): true, sss(1, sss(2, tang, tpm)): true, deep: false,
	} {
		if got := ClevisNeedsTPM(fmt.Appendf(nil, `{"type":"clevis","keyslots":["1"],"jwe":{"protected":%q}}`, protected(pin))); got != want {
			t.Errorf("%s: %v", pin, got)
		}
	}
	if ClevisNeedsTPM([]byte(`"`)) {
		t.Error("a token that cannot be read needs the TPM")
	}
}

// Every level is listed once.
func TestLevels(t *testing.T) {
	levels := Levels()
	slices.Sort(levels)
	if unique := len(slices.Compact(levels)); unique != 8 {
		t.Errorf("%d levels", unique)
	}
}
