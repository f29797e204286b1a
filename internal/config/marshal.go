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

// JSON is Marshal for programs.
func (c *Config) JSON() ([]byte, error) {
	content, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	if content, err = yaml.YAMLToJSON(content); err != nil {
		return nil, fmt.Errorf("cannot write the configuration as JSON: %w", err)
	}
	return content, nil
}
