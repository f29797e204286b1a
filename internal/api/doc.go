// Package api is the daemon's HTTP API: the server generated from api/openapi.yaml, the two places at which it listens, and the
// client that the commands use.
package api

//go:generate go tool oapi-codegen -config oapi-codegen.yaml -o api.gen.go ../../api/openapi.yaml
