package tpm2

import (
	"bytes"
	"encoding/hex"
	"testing"

	"luksmediad/test/swtpm"
)

// The digests were read back from objects that systemd 252 sealed, or computed from the formulas of the specification.
func TestPolicyDigest(t *testing.T) {
	zero, ones := bytes.Repeat([]byte{0x00}, 32), bytes.Repeat([]byte{0xff}, 32)
	for _, test := range []struct {
		name   string
		policy Policy
		values map[int][]byte
		want   string
	}{
		{"PCR 7", Policy{Bank: SHA256, PCRs: []int{7}}, map[int][]byte{7: zero},
			"8b5682d81b29435d08d79278150611dc7e5923b2fefcce684a09577b40130a8b"},
		{"PCR 7 and PIN", Policy{Bank: SHA256, PCRs: []int{7}, PIN: true}, map[int][]byte{7: zero},
			"b8db92fae7c1e0c588e7352d2fc10f27c7b384e32f706a520cb10bf7ffee8970"},
		{"PIN", Policy{PIN: true}, nil,
			"8fcd2169ab92694e0c633f1ab772842b8241bbc20288981fc7ac1eddc1fddb0e"},
		{"PCRs 0 and 7", Policy{Bank: SHA256, PCRs: []int{7, 0}}, map[int][]byte{0: zero, 7: zero},
			"02e3642b3e29eeccfffd8031c00a6f0a0febe5ceea2f6ef6b0322fe81598cf31"},
		{"PCR 7 of ones", Policy{Bank: SHA256, PCRs: []int{7}}, map[int][]byte{7: ones},
			"3fba4993f86fdb1703456bdb8b4e0740e7efcab8e8eb74105a1b590164718e60"},
		{"nothing", Policy{}, nil,
			"0000000000000000000000000000000000000000000000000000000000000000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.policy.Digest(test.values)
			if err != nil || hex.EncodeToString(got) != test.want {
				t.Errorf("digest is %x (%v), want %s", got, err, test.want)
			}
		})
	}
}

func TestPolicyDigestNeedsEveryValue(t *testing.T) {
	policy := Policy{Bank: SHA256, PCRs: []int{0, 7}}
	for _, values := range []map[int][]byte{nil, {0: make([]byte, 32)}, {0: make([]byte, 32), 7: make([]byte, 20)}} {
		_, err := policy.Digest(values)
		wantClass(t, err, ErrBankUnavailable)
	}
	policy.Bank = "md5"
	_, err := policy.Digest(nil)
	wantClass(t, err, ErrUnsupported)
}

func TestPolicyMatchesFindsDrift(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	token := seal(t, s, newKey(t), 7)
	live := func() map[int][]byte { return readPCRs(t, s, token.Bank, token.PCRs) }
	if same, err := token.PolicyMatches(live(), nil); !same || err != nil {
		t.Errorf("PolicyMatches right after sealing = %v, %v", same, err)
	}
	s.Extend(7, "more")
	if same, err := token.PolicyMatches(live(), nil); same || err != nil {
		t.Errorf("PolicyMatches after an extend = %v, %v", same, err)
	}
	token.PCRLock = true
	_, err := token.PolicyMatches(live(), nil)
	wantClass(t, err, ErrUnsupported)
}
