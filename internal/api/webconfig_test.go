package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"luksmediad/internal/api"
)

// site has what a web configuration names: a certificate for 127.0.0.1 and media.example that is its own authority.
type site struct {
	dir         string
	certificate tls.Certificate
	pool        *x509.CertPool
}

func newWebSite(t *testing.T) site {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wanted := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "media.example"}, DNSNames: []string{"media.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, wanted, wanted, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := site{dir: t.TempDir(), pool: x509.NewCertPool()}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if err := errors.Join(os.WriteFile(s.path("cert.pem"), certPEM, 0o600), os.WriteFile(s.path("key.pem"), keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.pool.AppendCertsFromPEM(certPEM)
	if s.certificate, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s site) path(name string) string { return filepath.Join(s.dir, name) }

func (s site) write(t *testing.T, config string) string {
	t.Helper()
	if err := os.WriteFile(s.path("web.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.path("web.yaml")
}

const (
	withTLS     = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
	withClients = "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: cert.pem}\n"
)

func withUser(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("basic_auth_users: {prometheus: %q}\n", hash)
}

// serveAuthenticated serves with a web configuration until the test ends, and returns its address.
func serveAuthenticated(t *testing.T, d *daemon, config string) string {
	t.Helper()
	listener, err := api.ListenAnywhere(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := d.server()
	runUntilCleanup(t, func(ctx context.Context) error { return server.ServeAuthenticated(ctx, listener, config) })
	return listener.Addr().String()
}

// client speaks TLS to one address, whatever host a URL names.
func (s site) client(t *testing.T, address string, certificates ...tls.Certificate) *http.Client {
	client := describedClient(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	})
	client.Transport.(describedTransport).next.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: s.pool, Certificates: certificates}
	return client
}

// Over a network: encrypted, for those who are known, and still without anything that acts.
func TestAuthenticatedSide(t *testing.T) {
	s, d := newWebSite(t), newDaemon()
	d.makeHealthy()
	client := s.client(t, serveAuthenticated(t, d, s.write(t, withTLS+withUser(t))))
	for _, c := range []struct {
		name, method, path, user, password string
		header                             []string
		want                               int
	}{
		{"known", "GET", "/healthz", "prometheus", "right", nil, 200},
		{"known, metrics", "GET", "/metrics", "prometheus", "right", nil, 200},
		{"wrong password", "GET", "/healthz", "prometheus", "wrong", nil, 401},
		{"unknown", "GET", "/v1/status", "somebody", "right", nil, 401},
		{"nobody", "GET", "/", "", "", nil, 401},
		{"nobody, what does not exist", "GET", "/v2", "", "", nil, 401},
		{"web page", "GET", "/healthz", "prometheus", "right", []string{"Origin", "https://media.example"}, 403},
		{"action", "POST", "/v1/lock", "prometheus", "right", nil, 403},
		{"action of nobody", "POST", "/v1/lock", "", "", nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), c.method, "https://media.example"+c.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			if c.user != "" {
				request.SetBasicAuth(c.user, c.password)
			}
			for i := 0; i < len(c.header); i += 2 {
				request.Header.Set(c.header[i], c.header[i+1])
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != c.want || response.TLS == nil {
				t.Errorf("%s, want %d", response.Status, c.want)
			}
		})
	}
	if d.acted.Load() != 0 {
		t.Error("the backend acted")
	}
}

func TestClientCertificates(t *testing.T) {
	s := newWebSite(t)
	address := serveAuthenticated(t, newDaemon(), s.write(t, withClients))
	if response, _ := do(t, s.client(t, address, s.certificate), http.MethodGet, "https://media.example/livez", ""); response.StatusCode != http.StatusOK {
		t.Errorf("with a certificate: %s", response.Status)
	}
	if _, err := s.client(t, address).Get("https://media.example/livez"); err == nil {
		t.Error("served without a certificate")
	}
}

// A file that lets everybody in is refused, and so is one that cannot be used; no refusal shows what is in it.
func TestWebConfigurationsThatAreRefused(t *testing.T) {
	s := newWebSite(t)
	for name, c := range map[string]struct {
		config string
		want   error
	}{
		"empty":                      {"", api.ErrUnauthenticated},
		"only TLS":                   {withTLS, api.ErrUnauthenticated},
		"certificates asked for":     {strings.Replace(withClients, "RequireAndVerify", "Request", 1), api.ErrUnauthenticated},
		"unknown key":                {withTLS + "basic_auth_user: {a: b}\n", nil},
		"password in clear":          {withTLS + "basic_auth_users: {a: hunter2}\n", nil},
		"certificate that is absent": {"tls_server_config: {cert_file: absent, key_file: key.pem}\n" + withUser(t), nil},
	} {
		t.Run(name, func(t *testing.T) {
			err := api.CheckWebConfig(s.write(t, c.config))
			if err == nil || c.want != nil && !errors.Is(err, c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// The file is read again at every request: an edit that takes the users away opens nothing.
func TestWebConfigurationThatIsEdited(t *testing.T) {
	s, d := newWebSite(t), newDaemon()
	path := s.write(t, withTLS+withUser(t))
	client := s.client(t, serveAuthenticated(t, d, path))
	s.write(t, withTLS)
	response, text := do(t, client, http.MethodGet, "https://media.example/healthz", "")
	if response.StatusCode != http.StatusForbidden || problem(t, text).Class != "unauthenticated" {
		t.Errorf("%s: %s", response.Status, text)
	}
}

// Whether TLS is spoken is decided once, at the start, and a certificate is wanted at the handshake: an edit that takes the users away for
// certificates lets nobody in who has shown none.
func TestWebConfigurationThatIsEditedToCertificates(t *testing.T) {
	for name, c := range map[string]struct{ scheme, before string }{
		"in clear":                 {"http", withUser(t)},
		"a connection from before": {"https", withTLS + withUser(t)},
	} {
		t.Run(name, func(t *testing.T) {
			s, d := newWebSite(t), newDaemon()
			d.makeHealthy()
			path := s.write(t, c.before)
			client := s.client(t, serveAuthenticated(t, d, path))
			transport := client.Transport.(describedTransport).next.(*http.Transport)
			transport.DisableKeepAlives = false
			t.Cleanup(transport.CloseIdleConnections)
			if response, _ := do(t, client, http.MethodGet, c.scheme+"://media.example/healthz", ""); response.StatusCode != http.StatusUnauthorized {
				t.Errorf("before: %s", response.Status)
			}
			s.write(t, withClients)
			response, text := do(t, client, http.MethodGet, c.scheme+"://media.example/healthz", "")
			if response.StatusCode != http.StatusForbidden || problem(t, text).Class != "unauthenticated" {
				t.Errorf("%s: %s", response.Status, text)
			}
		})
	}
}
