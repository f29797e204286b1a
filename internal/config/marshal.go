package config

import (
	"fmt"

	"github.com/goccy/go-yaml"
)

// Marshal writes the effective configuration, every default included. Parse reads it back to the same value.
func (c *Config) Marshal() ([]byte, error) {
	content, err := yaml.MarshalWithOptions(c, yaml.IndentSequence(true))
	if err != nil {
		return nil, fmt.Errorf("cannot write the configuration as YAML: %w", err)
	}
	return content, nil
}
