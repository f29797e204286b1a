package volume

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// maxShares bounds how deep shares of a key are split again.
const maxShares = 4

// clevisPin is the protected header of a JWE that a pin of clevis has made (latchset/clevis, src/pins).
type clevisPin struct {
	Clevis struct {
		Pin string `json:"pin"`
		SSS struct {
			Threshold int      `json:"t"`
			Shares    []string `json:"jwe"`
		} `json:"sss"`
	} `json:"clevis"`
}

// wayOfClevis judges what the header's tokens of clevis are bound to, the weakest of them.
func wayOfClevis(header *luks2.Header, name string) way {
	level := LevelUnknown
	if header != nil {
		var levels []Level
		for _, token := range header.Tokens(unlock.TokenClevis) {
			levels = append(levels, clevisLevel(token.Raw))
		}
		level = nthWeakest(levels, 1)
	}
	switch level {
	case LevelNetwork:
		return way{unlock.TokenClevis, level, name + " asks a server of the network: the disks of this machine give nothing away to whoever cannot reach it"}
	case LevelSnapshot:
		return way{unlock.TokenClevis, level, name + " is sealed in the TPM: a stolen disk, a backup or a snapshot without the TPM's state gives nothing away"}
	}
	return unknownWay(unlock.TokenClevis, "what "+name+" is bound to is not known")
}

// clevisLevel is that of a token.
func clevisLevel(raw []byte) Level { return pinLevel(protectedOf(raw), maxShares) }

// protectedOf is the protected header of a token's JWE, which is in JSON; empty if there is none.
func protectedOf(raw []byte) string {
	var token struct {
		JWE struct {
			Protected string `json:"protected"`
		} `json:"jwe"`
	}
	if err := json.Unmarshal(raw, &token); err != nil {
		return ""
	}
	return token.JWE.Protected
}

// ClevisNeedsTPM tells whether a token of clevis gives its key only with the TPM. One that cannot be read is not known to.
func ClevisNeedsTPM(raw []byte) bool { return needsTPM(protectedOf(raw), maxShares) }

func needsTPM(protected string, depth int) bool {
	pin := readPin(protected)
	if depth == 0 || pin.Clevis.Pin != "sss" {
		return pin.Clevis.Pin == "tpm2"
	}
	without := 0
	for _, share := range pin.Clevis.SSS.Shares {
		protected, _, _ := strings.Cut(share, ".")
		if !needsTPM(protected, depth-1) {
			without++
		}
	}
	return without < pin.Clevis.SSS.Threshold
}

// readPin reads a protected header; the pin of one that cannot be read is empty.
func readPin(protected string) (pin clevisPin) {
	text, err := base64.RawURLEncoding.DecodeString(protected)
	if err != nil || json.Unmarshal(text, &pin) != nil {
		return clevisPin{}
	}
	return pin
}

// pinLevel reads a protected header. Shares are JWEs in the compact form, which begins with it.
func pinLevel(protected string, depth int) Level {
	pin := readPin(protected)
	if depth == 0 {
		return LevelUnknown
	}
	switch pin.Clevis.Pin {
	case "tang":
		return LevelNetwork
	case "tpm2":
		return LevelSnapshot
	case "sss":
		var levels []Level
		for _, share := range pin.Clevis.SSS.Shares {
			protected, _, _ := strings.Cut(share, ".")
			levels = append(levels, pinLevel(protected, depth-1))
		}
		return nthWeakest(levels, pin.Clevis.SSS.Threshold)
	}
	return LevelUnknown
}

// nthWeakest is the level of a key of which n shares are needed: who gathers them begins with the weakest.
func nthWeakest(levels []Level, n int) Level {
	if n < 1 || n > len(levels) {
		return LevelUnknown
	}
	slices.SortFunc(levels, func(x, y Level) int { return slices.Index(Levels(), x) - slices.Index(Levels(), y) })
	return levels[n-1]
}
