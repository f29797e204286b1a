package tpm2

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/google/go-tpm/tpm2"
)

// TokenType is the type of the LUKS2 tokens that this package reads and writes.
const TokenType = "systemd-tpm2"

// maxKeyslots is the number of keyslots of a LUKS2 header (cryptsetup lib/luks2/luks2.h, LUKS2_KEYSLOTS_MAX).
const maxKeyslots = 32

// Token is a systemd-tpm2 token (systemd src/shared/tpm2-util.c,
// tpm2_make_luks2_json). The sealed bytes, in standard base64 with padding, are
// the passphrase of its keyslot.
type Token struct {
	// Keyslots are the numbers of the keyslots, one in every token of systemd.
	Keyslots []int
	// Private is the content of the TPM2B_PRIVATE of the sealed object, Public that of its TPM2B_PUBLIC.
	Private, Public []byte
	// Seed is set in tokens made on another machine for this TPM (systemd 255, --tpm2-device-key=).
	Seed []byte
	// PCRs that the policy takes literally, none for a policy that does not look at PCRs.
	PCRs []int
	// Bank of the PCRs; empty when the token names none.
	Bank Bank
	// PrimaryAlg is "ecc" or "rsa": the kind of the primary key. Empty means "ecc".
	PrimaryAlg string
	// PolicyHash is the policy digest of the sealed object, SHA-256.
	PolicyHash []byte
	// SRK is the persistent storage root key; nil in tokens of systemd up to 253.
	SRK *SRK
	// PIN says that the policy asks for a PIN, hashed with Salt where there is one (systemd 253).
	PIN  bool
	Salt []byte
	// Argon2id is set where the PIN is hardened by it (systemd 262). The passphrase of the keyslot then depends on the PIN too.
	Argon2id *Argon2id
	// PubkeyPCRs and Pubkey (PEM) belong to a signed policy. PubkeyRef is what the signatures have to name besides (systemd
	// 262, --tpm2-public-key-policyref=), empty for nothing.
	PubkeyPCRs []int
	Pubkey     []byte
	PubkeyRef  string
	// PCRLock says that the policy is kept in the NV index whose TPM2B_NV_PUBLIC is PCRLockNV.
	PCRLock   bool
	PCRLockNV []byte
}

// tokenJSON has the fields in the order in which systemd writes them, and like
// systemd 256 leaves out what is absent or false.
type tokenJSON struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Blob       encoded  `json:"tpm2-blob"`
	PCRs       []int    `json:"tpm2-pcrs"`
	Bank       Bank     `json:"tpm2-pcr-bank,omitempty"`
	PrimaryAlg string   `json:"tpm2-primary-alg,omitempty"`
	PolicyHash string   `json:"tpm2-policy-hash"`
	PIN        bool     `json:"tpm2-pin,omitempty"`
	PCRLock    bool     `json:"tpm2_pcrlock,omitempty"`
	PubkeyPCRs []int    `json:"tpm2_pubkey_pcrs,omitempty"`
	Pubkey     encoded  `json:"tpm2_pubkey,omitempty"`
	PubkeyRef  string   `json:"tpm2_pubkey_ref,omitempty"`
	Salt       encoded  `json:"tpm2_salt,omitempty"`
	SRK        encoded  `json:"tpm2_srk,omitempty"`
	PCRLockNV  encoded  `json:"tpm2_pcrlock_nv,omitempty"`
	MemoryCost *uint64  `json:"tpm2_argon2id_memcost,omitempty"`
	Iterations *uint32  `json:"tpm2_argon2id_iterations,omitempty"`
	Lanes      *uint32  `json:"tpm2_argon2id_lanes,omitempty"`
}

// encoded is bytes as standard base64 with padding, and nothing else.
type encoded []byte

// UnmarshalJSON implements [json.Unmarshaler].
func (e *encoded) UnmarshalJSON(raw []byte) error {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(text)
	*e = decoded
	return err
}

// MarshalJSON implements [json.Marshaler]. The result is what systemd 256 and
// later write for the same token.
func (t *Token) MarshalJSON() ([]byte, error) {
	out := tokenJSON{
		Type:       TokenType,
		Keyslots:   make([]string, 0, len(t.Keyslots)),
		Blob:       t.blob(),
		PCRs:       append([]int{}, t.PCRs...),
		Bank:       t.Bank,
		PrimaryAlg: t.PrimaryAlg,
		PolicyHash: hex.EncodeToString(t.PolicyHash),
		PIN:        t.PIN,
		PCRLock:    t.PCRLock,
		PubkeyPCRs: t.PubkeyPCRs,
		Pubkey:     t.Pubkey,
		PubkeyRef:  t.PubkeyRef,
		Salt:       t.Salt,
		PCRLockNV:  t.PCRLockNV,
	}
	for _, slot := range t.Keyslots {
		out.Keyslots = append(out.Keyslots, strconv.Itoa(slot))
	}
	if t.SRK != nil {
		out.SRK = t.SRK.marshal()
	}
	if a := t.Argon2id; a != nil {
		out.MemoryCost, out.Iterations, out.Lanes = &a.MemoryBytes, &a.Iterations, &a.Lanes
	}
	return json.Marshal(out)
}

// ParseToken reads the JSON object of a token, strictly: a field that is
// missing, doubled, out of bounds or at odds with another is [ErrToken]. A field
// that systemd did not write up to version 262, and a secret in shards, are
// [ErrUnsupported]. What [Device.Unseal] cannot handle is parsed nevertheless.
func ParseToken(data []byte) (*Token, error) {
	t, err := parseToken(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s token: %w", TokenType, err)
	}
	return t, nil
}

func parseToken(data []byte) (*Token, error) {
	in, err := decodeToken(data)
	if err != nil {
		return nil, err
	}
	t := &Token{
		PCRs: in.PCRs, Bank: in.Bank, PrimaryAlg: in.PrimaryAlg,
		PIN: in.PIN, Salt: in.Salt,
		PubkeyPCRs: in.PubkeyPCRs, Pubkey: in.Pubkey, PubkeyRef: in.PubkeyRef,
		PCRLock: in.PCRLock, PCRLockNV: in.PCRLockNV,
	}
	for _, step := range []func(*tokenJSON) error{
		t.setKeyslots, t.setPolicy, t.setBlob, t.setSRK, t.setArgon2id, checkNames,
	} {
		if err := step(in); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// malformed is an error of class ErrToken.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrToken, fmt.Errorf(format, args...))
}

func (t *Token) setKeyslots(in *tokenJSON) error {
	for _, text := range in.Keyslots {
		slot, err := strconv.Atoi(text)
		if err != nil || slot < 0 || slot >= maxKeyslots || strconv.Itoa(slot) != text {
			return malformed("%q is no keyslot", text)
		}
		t.Keyslots = append(t.Keyslots, slot)
	}
	return nil
}

func (t *Token) setPolicy(in *tokenJSON) (err error) {
	t.PolicyHash, err = hex.DecodeString(in.PolicyHash)
	if err != nil || len(t.PolicyHash) != digestSize {
		return malformed("tpm2-policy-hash is not %d bytes in hexadecimal", digestSize)
	}
	for _, pcrs := range [][]int{in.PCRs, in.PubkeyPCRs} {
		if err := checkPCRs(pcrs); err != nil {
			return malformed("%w", err)
		}
	}
	return nil
}

func (t *Token) setSRK(in *tokenJSON) (err error) {
	if in.SRK != nil {
		t.SRK, err = parseSRK(in.SRK)
	}
	return err
}

// setArgon2id wants all three parameters or none (systemd src/shared/tpm2-util.c, tpm2_parse_luks2_json).
func (t *Token) setArgon2id(in *tokenJSON) error {
	switch {
	case in.MemoryCost == nil && in.Iterations == nil && in.Lanes == nil:
		return nil
	case in.MemoryCost == nil || in.Iterations == nil || in.Lanes == nil:
		return malformed("the parameters of Argon2id are not complete")
	case !t.PIN || len(t.Salt) == 0:
		return malformed("Argon2id without PIN and salt")
	}
	t.Argon2id = &Argon2id{MemoryBytes: *in.MemoryCost, Iterations: *in.Iterations, Lanes: *in.Lanes}
	return t.Argon2id.check()
}

func checkNames(in *tokenJSON) error {
	if _, err := in.Bank.algorithm(); in.Bank != "" && err != nil {
		return err
	}
	if !slices.Contains([]string{"", "ecc", "rsa"}, in.PrimaryAlg) {
		return fmt.Errorf("primary algorithm %q: %w", in.PrimaryAlg, ErrUnsupported)
	}
	return nil
}

// blob joins what setBlob takes apart.
func (t *Token) blob() []byte {
	out := appendSized(appendSized(nil, t.Private), t.Public)
	if t.Seed != nil {
		out = appendSized(out, t.Seed)
	}
	return out
}

// setBlob takes apart TPM2B_PRIVATE, TPM2B_PUBLIC and, since systemd 255 and
// only if it is there, TPM2B_ENCRYPTED_SECRET.
func (t *Token) setBlob(in *tokenJSON) (err error) {
	rest := []byte(in.Blob)
	for _, part := range []*[]byte{&t.Private, &t.Public, &t.Seed} {
		if part == &t.Seed && len(rest) == 0 {
			break
		}
		if *part, rest, err = cutSized(rest); err != nil {
			return malformed("tpm2-blob: %w", err)
		}
	}
	if len(rest) != 0 {
		return malformed("tpm2-blob has %d bytes too many", len(rest))
	}
	return t.checkObject()
}

// checkObject makes sure that the object is sealed data under the policy that
// the token tells, so that what is computed from the one holds for the other.
func (t *Token) checkObject() error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](t.Public)
	switch {
	case err != nil:
		return malformed("tpm2-blob has no public area: %w", err)
	case public.Type != tpm2.TPMAlgKeyedHash:
		return malformed("tpm2-blob holds an object of type %#x instead of sealed data", uint16(public.Type))
	case public.NameAlg != tpm2.TPMAlgSHA256:
		return fmt.Errorf("sealed object with name algorithm %#x: %w", uint16(public.NameAlg), ErrUnsupported)
	case !bytes.Equal(public.AuthPolicy.Buffer, t.PolicyHash):
		return malformed("tpm2-policy-hash is not the policy of the sealed object")
	}
	return nil
}

// decodeToken does what encoding/json is too lenient for: it matches names
// whatever their case and takes the last of doubled ones.
func decodeToken(data []byte) (*tokenJSON, error) {
	fields, err := splitObject(data)
	if err != nil {
		return nil, malformed("%w", err)
	}
	var kind string
	if err := json.Unmarshal(fields["type"], &kind); err != nil || kind != TokenType {
		return nil, malformed("type is not %q", TokenType)
	}
	if err := checkFields(fields); err != nil {
		return nil, err
	}
	var in tokenJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, malformed("%w", err)
	}
	return &in, nil
}

func checkFields(fields map[string]json.RawMessage) error {
	for name, value := range fields {
		switch name {
		case "tpm2-blob", "tpm2-policy-hash":
			if bytes.HasPrefix(value, []byte("[")) {
				return fmt.Errorf("secret in shards: %w", ErrUnsupported)
			}
		case "type", "keyslots", "tpm2-pcrs", "tpm2-pcr-bank", "tpm2-primary-alg", "tpm2-pin", "tpm2_pcrlock",
			"tpm2_pubkey_pcrs", "tpm2_pubkey", "tpm2_pubkey_ref", "tpm2_salt", "tpm2_srk", "tpm2_pcrlock_nv",
			"tpm2_argon2id_memcost", "tpm2_argon2id_iterations", "tpm2_argon2id_lanes":
		default:
			return fmt.Errorf("field %q: %w", name, ErrUnsupported)
		}
		if bytes.Equal(value, []byte("null")) {
			return malformed("%s is null", name)
		}
	}
	for _, name := range []string{"keyslots", "tpm2-blob", "tpm2-pcrs", "tpm2-policy-hash"} {
		if fields[name] == nil {
			return malformed("%s is missing", name)
		}
	}
	return nil
}

// splitObject gives the members of a JSON object by name.
func splitObject(data []byte) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	fields := map[string]json.RawMessage{}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		name := key.(string) // the decoder takes nothing else for a name
		if fields[name] != nil {
			return nil, fmt.Errorf("%s occurs twice", name)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		fields[name] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows the object")
	}
	return fields, nil
}

// cutSized takes a TPM2B off the front: a size of two bytes and as many bytes.
func cutSized(data []byte) (content, rest []byte, err error) {
	if len(data) < 2 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	size := int(binary.BigEndian.Uint16(data))
	if len(data) < 2+size {
		return nil, nil, fmt.Errorf("%d of %d bytes: %w", len(data)-2, size, io.ErrUnexpectedEOF)
	}
	return data[2 : 2+size], data[2+size:], nil
}

func appendSized(data, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16(data, uint16(len(content))), content...)
}
