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
		err = checkAuthentication(path)
	}
	if err != nil {
		return fmt.Errorf("cannot use web configuration %s: %w", path, err)
	}
	return nil
}

// checkAuthentication looks for what tells who asks; everything else of the file is the toolkit's.
func checkAuthentication(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config struct {
		Users map[string]string `yaml:"basic_auth_users"`
		TLS   struct {
			ClientAuth string `yaml:"client_auth_type"`
		} `yaml:"tls_server_config"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return errors.New("not YAML") // the error quotes the file, which has hashes of passwords
	}
	if len(config.Users) == 0 && config.TLS.ClientAuth != "RequireAndVerifyClientCert" {
		return ErrUnauthenticated
	}
	return nil
}

// requireAuthentication looks again at every request, because the toolkit reads the file again: an edit must not open the door.
func requireAuthentication(path string) middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := checkAuthentication(path); err != nil {
				refuse(w, http.StatusForbidden, classUnauthenticated, fmt.Sprintf("cannot tell who asks: %v", err))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}
