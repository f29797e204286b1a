package api

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/exporter-toolkit/web"
)

// ErrUnauthenticated means that a web configuration lets everybody in.
var ErrUnauthenticated = errors.New("neither basic_auth_users nor client_auth_type: RequireAndVerifyClientCert")

// CheckWebConfig reads the file, its certificates and its users as [Server.ServeAuthenticated] does.
func CheckWebConfig(path string) error {
	err := web.Validate(path)
	if err == nil {
		_, err = readAuthentication(path)
	}
	if err != nil {
		return fmt.Errorf("cannot use web configuration %s: %w", path, err)
	}
	return nil
}

// authentication is how it is told who asks.
type authentication int

const (
	byUsers        authentication = iota + 1 // the toolkit asks each request for a password
	byCertificates                           // the handshake of the connection wanted one, and nothing after it does
)

// readAuthentication looks for what tells who asks; everything else of the file is the toolkit's.
func readAuthentication(path string) (authentication, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var config struct {
		Users map[string]string `yaml:"basic_auth_users"`
		TLS   struct {
			ClientAuth string `yaml:"client_auth_type"`
		} `yaml:"tls_server_config"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return 0, errors.New("not YAML") // the error quotes the file, which has hashes of passwords
	}
	switch {
	case len(config.Users) > 0:
		return byUsers, nil
	case config.TLS.ClientAuth == "RequireAndVerifyClientCert":
		return byCertificates, nil
	}
	return 0, ErrUnauthenticated
}

// requireAuthentication looks again at every request, because the toolkit reads the file again: an edit must not open the door. The
// toolkit decides only once whether it speaks TLS, and a connection from before an edit has shown what was wanted then.
func requireAuthentication(path string) middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			by, err := readAuthentication(path)
			if err == nil && by == byCertificates && (r.TLS == nil || len(r.TLS.VerifiedChains) == 0) {
				err = errors.New("this connection has no certificate of a client; a new one or a restart of the daemon wants it")
			}
			if err != nil {
				refuse(w, http.StatusForbidden, classUnauthenticated, fmt.Sprintf("cannot tell who asks: %v", err))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}
