package luks2

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// reencryption is the keyslot that cryptsetup adds for it.
var reencryption = map[string]any{
	"type": "reencrypt", "key_size": 1, "mode": "reencrypt", "direction": "forward",
	"area": map[string]any{"type": "checksum", "offset": "2097152", "size": "4096", "hash": "sha256", "sector_size": 512},
}

// Each crafted header is intact, and refused for the one thing wrong with it.
func TestCraftedHeadersAreRefused(t *testing.T) {
	b := loadBase(t)
	document := b.document()
	secondSegment := document["segments"].(map[string]any)["0"]
	for name, test := range map[string]struct {
		changes []any
		field   string
		value   string // as in the message
	}{
		"null cipher":              {[]any{"segments.0.encryption", "cipher_null-ecb"}, "segments.0.encryption", "cipher_null-ecb"},
		"null cipher, other form":  {[]any{"segments.0.encryption", "capi:ecb(cipher_null)-null"}, "segments.0.encryption", "capi:ecb(cipher_null)-null"},
		"null cipher in a keyslot": {[]any{"keyslots.0.area.encryption", "cipher_null-ecb"}, "keyslots.0.area.encryption", "cipher_null-ecb"},
		"null cipher, unbound":     {[]any{"keyslots.5.area.encryption", "cipher_null-ecb"}, "keyslots.5.area.encryption", "cipher_null-ecb"},
		"ECB":                      {[]any{"segments.0.encryption", "aes-ecb"}, "segments.0.encryption", "aes-ecb"},
		"CBC with a plain IV":      {[]any{"segments.0.encryption", "aes-cbc-plain64"}, "segments.0.encryption", "aes-cbc-plain64"},
		"IV of 32 bits":            {[]any{"segments.0.encryption", "aes-xts-plain"}, "segments.0.encryption", "aes-xts-plain"},
		"cipher in capitals":       {[]any{"segments.0.encryption", "AES-XTS-PLAIN64"}, "segments.0.encryption", "AES-XTS-PLAIN64"},
		"no cipher":                {[]any{"segments.0.encryption", ""}, "segments.0.encryption", ""},
		"two segments":             {[]any{"segments.1", secondSegment}, "segments", "2 segments"},
		"no segment":               {[]any{"segments.0", nil, "digests.0.segments", []any{}}, "segments", "0 segments"},
		"linear segment":           {[]any{"segments.0.type", "linear"}, "segments.0.type", "linear"},
		"OPAL segment":             {[]any{"segments.0.type", "hw-opal"}, "segments.0.type", "hw-opal"},
		"segment flag":             {[]any{"segments.0.flags", []any{"backup-final"}}, "segments.0.flags", "backup-final"},
		"integrity": {[]any{"segments.0.integrity", map[string]any{"type": "hmac(sha256)",
			"journal_encryption": "none", "journal_integrity": "none"}}, "segments.0.integrity", "present"},
		"unknown member of the segment": {[]any{"segments.0.opal_segment_number", 1}, "segments.0.opal_segment_number", "present"},
		"IV tweak":                      {[]any{"segments.0.iv_tweak", "8"}, "segments.0.iv_tweak", "8"},
		"sector size 8192":              {[]any{"segments.0.sector_size", 8192}, "segments.0.sector_size", "8192"},
		"sector size 0":                 {[]any{"segments.0.sector_size", 0}, "segments.0.sector_size", "0"},
		"data inside the header":        {[]any{"segments.0.offset", "4096"}, "segments.0.offset", "4096"},
		"data inside the keyslots":      {[]any{"segments.0.offset", "16773120"}, "segments.0.offset", "16773120"},
		"detached header":               {[]any{"segments.0.offset", "0"}, "segments.0.offset", "0"},
		"data not on a sector":          {[]any{"segments.0.offset", "16777217"}, "segments.0.offset", "16777217"},
		"data behind the end":           {[]any{"segments.0.offset", "18874368"}, "container size", "18874368"},
		"data far behind the end":       {[]any{"segments.0.offset", "9223372036854775807"}, "segments.0.offset", "9223372036854775807"},
		"data on half a sector":         {[]any{"segments.0.offset", "16777728"}, "container size", "18874368"},
		"fixed size past the end":       {[]any{"segments.0.size", "2101248"}, "segments.0.size", "2101248"},
		"fixed size of half a sector":   {[]any{"segments.0.size", "4608"}, "segments.0.size", "4608"},
		"fixed size 0":                  {[]any{"segments.0.size", "0"}, "segments.0.size", "0"},

		"requirement, reencryption": {[]any{"config.requirements", map[string]any{"mandatory": []any{"online-reencrypt-v2"}}}, "config.requirements.mandatory", "online-reencrypt-v2"},
		"requirement, offline":      {[]any{"config.requirements", map[string]any{"mandatory": []any{"offline-reencrypt"}}}, "config.requirements.mandatory", "offline-reencrypt"},
		"requirement, unknown":      {[]any{"config.requirements", map[string]any{"mandatory": []any{"sesame"}}}, "config.requirements.mandatory", "sesame"},
		"unknown activation flag":   {[]any{"config.flags", []any{"plaintext"}}, "config.flags", "plaintext"},
		"JSON size":                 {[]any{"config.json_size", "16384"}, "config.json_size", "16384"},
		"keyslots area too large":   {[]any{"config.keyslots_size", "134221824"}, "config.keyslots_size", "134221824"},
		"keyslots area over data":   {[]any{"config.keyslots_size", "16748544"}, "segments.0.offset", "16777216"},
		"keyslots area too small":   {[]any{"config.keyslots_size", "4096"}, "keyslots.1.area", "258048 bytes at 290816"},
		"JSON size of a smaller":    {[]any{"config.json_size", "4096"}, "config.json_size", "4096"},
		"keyslots area unaligned":   {[]any{"config.keyslots_size", "16744447"}, "config.keyslots_size", "16744447"},

		"segments of a reencryption": {[]any{"segments.0.flags", []any{"in-reencryption"}}, "segments.0.flags", "in-reencryption"},
		"segment of another number":  {[]any{"segments.0", nil, "segments.1", secondSegment, "digests.0.segments", []any{"1"}, "segments.1.type", "linear"}, "segments.1.type", "linear"},
		"OPAL keyslot":               {[]any{"keyslots.0.type", "hw-opal"}, "keyslots.0.type", "hw-opal"},
		"keyslots meet by a sector":  {[]any{"keyslots.1.area.offset", "286720"}, "keyslots.1.area", "overlaps keyslot 0"},

		"reencryption keyslot":        {[]any{"keyslots.2", reencryption}, "keyslots.2.type", "reencrypt"},
		"keyslot over the primary":    {[]any{"keyslots.0.area.offset", "0"}, "keyslots.0.area", "258048 bytes at 0"},
		"keyslot over the secondary":  {[]any{"keyslots.0.area.offset", "16384"}, "keyslots.0.area", "258048 bytes at 16384"},
		"keyslot over the data":       {[]any{"keyslots.0.area.offset", "16777216"}, "keyslots.0.area", "258048 bytes at 16777216"},
		"keyslot at the end of all":   {[]any{"keyslots.0.area.offset", "9223372036854775807"}, "keyslots.0.area", "258048 bytes at 9223372036854775807"},
		"endless keyslot":             {[]any{"keyslots.0.area.size", "9223372036854775807"}, "keyslots.0.area", "9223372036854775807 bytes at 32768"},
		"keyslots overlap":            {[]any{"keyslots.1.area.offset", "36864"}, "keyslots.1.area", "overlaps keyslot 0"},
		"keyslots in one place":       {[]any{"keyslots.1.area.offset", "32768"}, "keyslots.1.area", "overlaps keyslot 0"},
		"keyslot too small":           {[]any{"keyslots.0.area.size", "4096"}, "keyslots.0.area.size", "4096"},
		"keyslot area type":           {[]any{"keyslots.0.area.type", "journal"}, "keyslots.0.area.type", "journal"},
		"keyslot area key":            {[]any{"keyslots.0.area.key_size", 16}, "keyslots.0.area.key_size", "128"},
		"other splitter":              {[]any{"keyslots.0.af.type", "none"}, "keyslots.0.af.type", "none"},
		"one stripe":                  {[]any{"keyslots.0.af.stripes", 1}, "keyslots.0.af.stripes", "1"},
		"splitter hash":               {[]any{"keyslots.0.af.hash", "crc32c"}, "keyslots.0.af.hash", "crc32c"},
		"priority":                    {[]any{"keyslots.0.priority", 3}, "keyslots.0.priority", "3"},
		"KDF":                         {[]any{"keyslots.0.kdf.type", "scrypt"}, "keyslots.0.kdf.type", "scrypt"},
		"KDF hash":                    {[]any{"keyslots.0.kdf.hash", "md5"}, "keyslots.0.kdf.hash", "md5"},
		"one iteration":               {[]any{"keyslots.0.kdf.iterations", 1}, "keyslots.0.kdf.iterations", "1"},
		"no salt":                     {[]any{"keyslots.0.kdf.salt", ""}, "keyslots.0.kdf.salt", "0"},
		"Argon2 with 16 GiB":          {argon2(4, 16<<20, 4), "keyslots.0.kdf.memory", "16777216"},
		"Argon2 with no memory":       {argon2(4, 1, 4), "keyslots.0.kdf.memory", "1"},
		"Argon2 with one pass":        {argon2(1, 65536, 4), "keyslots.0.kdf.time", "1"},
		"Argon2 with 64 threads":      {argon2(4, 65536, 64), "keyslots.0.kdf.cpus", "64"},
		"key of 8 bits":               {[]any{"keyslots.0.key_size", 1, "keyslots.1.key_size", 1}, "keyslots.key_size", "8 bits"},
		"keys of two sizes":           {[]any{"keyslots.0.key_size", 32}, "keyslots.key_size", "0 bits"},
		"key too large":               {[]any{"keyslots.0.key_size", 4294967295}, "keyslots.0.key_size", "4294967295"},
		"key not of the cipher":       {[]any{"segments.0.encryption", "aes-cbc-essiv:sha256"}, "keyslots.key_size", "512 bits"},
		"keyslot without digest":      {[]any{"digests.0.keyslots", []any{"0"}}, "keyslots.1", "in 0 digests"},
		"keyslot in two digests":      {[]any{"digests.1.keyslots", []any{"5", "0"}}, "keyslots.0", "in 2 digests"},
		"segment without digest":      {[]any{"digests.0.segments", []any{}}, "digests", "0 of the segment"},
		"segment with two digests":    {[]any{"digests.1.segments", []any{"0"}}, "digests", "2 of the segment"},
		"no way in":                   {[]any{"digests.0.keyslots", []any{}, "digests.1.keyslots", []any{"0", "1", "5"}}, "digests", "no keyslot opens the segment"},
		"digest type":                 {[]any{"digests.0.type", "crc"}, "digests.0.type", "crc"},
		"digest hash":                 {[]any{"digests.0.hash", "md5"}, "digests.0.hash", "md5"},
		"digest with one iteration":   {[]any{"digests.0.iterations", 1}, "digests.0.iterations", "1"},
		"digest of one byte":          {[]any{"digests.0.digest", "AA=="}, "digests.0.digest", "1"},
		"digest salt":                 {[]any{"digests.0.salt", "AAAA"}, "digests.0.salt", "3"},
		"second digest is checked":    {[]any{"digests.1.hash", "md5"}, "digests.1.hash", "md5"},
		"unbound keyslot is checked":  {[]any{"keyslots.5.af.stripes", 1}, "keyslots.5.af.stripes", "1"},
		"keyslots area of the header": {[]any{"config.keyslots_size", "0"}, "keyslots.0.area", "258048 bytes at 32768"},
	} {
		t.Run(name, func(t *testing.T) { // fault 53
			r := b.with(t, test.changes...)
			h, err := Read(r, b.size)
			if err != nil {
				t.Fatalf("the crafted header is not intact: %v", err)
			}
			if len(h.Damage) > 0 {
				t.Fatalf("the crafted header is damaged: %v", h.Damage)
			}
			imageOf(h) // must not take the machine's memory even before Validate
			err = h.Validate(b.size)
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("error %v, want %v", err, ErrRefused)
			}
			if !names(err, test.field, test.value) {
				t.Errorf("error %v, want %s %q refused", err, test.field, test.value)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the message has more than one line: %q", err)
			}
		})
	}
}

func argon2(time, memory, cpus int) []any {
	return []any{"keyslots.0.kdf", map[string]any{"type": "argon2id", "time": time, "memory": memory, "cpus": cpus,
		"salt": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}
}

// names looks for the refusal of a value of a field, which says what is allowed instead.
func names(err error, field, value string) bool {
	list, _ := errors.AsType[refusals](err)
	return slices.ContainsFunc(list, func(r *RefusedError) bool {
		return r.Field == field && r.Value == value && r.Allowed != ""
	})
}

// refuses looks for the refusal of a field, whatever stands there.
func refuses(err error, field string) bool {
	list, _ := errors.AsType[refusals](err)
	return slices.ContainsFunc(list, func(r *RefusedError) bool { return r.Field == field })
}

// What differs from the default, but is sound, is accepted.
func TestUnusualHeadersAreAccepted(t *testing.T) {
	b := loadBase(t)
	for name, changes := range map[string][]any{
		"unchanged":             {},
		"serpent":               {"segments.0.encryption", "serpent-xts-plain64", "keyslots.0.area.encryption", "serpent-xts-plain64"},
		"twofish":               {"segments.0.encryption", "twofish-xts-plain64"},
		"adiantum":              {"segments.0.encryption", "xchacha20,aes-adiantum-plain64", "keyslots.0.key_size", 32, "keyslots.1.key_size", 32},
		"discards allowed":      {"config.flags", []any{"allow-discards", "no-read-workqueue", "no-write-workqueue"}},
		"no requirements":       {"config.requirements", map[string]any{"mandatory": []any{}}},
		"optional requirement":  {"config.requirements", map[string]any{"optional0": []any{"anything"}}},
		"no flags":              {"config.flags", []any{}},
		"leftovers of Argon2":   {"keyslots.0.kdf.time", 4, "keyslots.0.kdf.memory", 1048576, "keyslots.0.kdf.cpus", 4},
		"keyslots side by side": {"keyslots.1.area.offset", "290816"},
		"sector size 1024":      {"segments.0.sector_size", 1024},
		"sector size 2048":      {"segments.0.sector_size", 2048},
		"fixed size":            {"segments.0.size", "1048576"},
		"data later":            {"segments.0.offset", "17825792"},
		"argon2id of 1 GiB":     argon2(4, 1<<20, 4),
		"unknown top level":     {"future", map[string]any{}},
		"unknown token":         {"tokens.7", map[string]any{"type": "acme", "keyslots": []any{}, "x": []any{nil, true, 1.5}}},
		"whirlpool":             {"keyslots.0.af.hash", "whirlpool"},
		"sha1 of old":           {"keyslots.0.af.hash", "sha1", "keyslots.0.kdf.hash", "sha1", "digests.0.hash", "sha1", "digests.0.digest", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="},
	} {
		h, err := Read(b.with(t, changes...), b.size)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := h.Validate(b.size); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllThatIsWrongIsSaid(t *testing.T) {
	b := loadBase(t)
	h, err := Read(b.with(t, "segments.0.encryption", "cipher_null-ecb", "keyslots.0.af.stripes", 1), b.size)
	if err != nil {
		t.Fatal(err)
	}
	h.UUID = "../../etc"
	err = h.Validate(b.size)
	for _, field := range []string{"uuid", "segments.0.encryption", "keyslots.0.af.stripes"} {
		if !refuses(err, field) {
			t.Errorf("%s is not in %v", field, err)
		}
	}
	if _, ok := errors.AsType[*RefusedError](err); !ok {
		t.Errorf("no *RefusedError in %v", err)
	}
	want := `LUKS2 header refused: uuid is "../../etc", allowed: a UUID; segments.0.encryption is "cipher_null-ecb", allowed: aes-xts-plain64, `
	if !strings.HasPrefix(err.Error(), want) {
		t.Errorf("message %q", err)
	}
}
