package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// decodeExactly takes an object with no other members than these: a misspelt one must not mean "nothing". encoding/json would also take
// Stop_Services for stop_services, and null for anything.
func decodeExactly(data []byte, into any, known ...string) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return err
	}
	if members == nil {
		return errors.New("null is no object")
	}
	for name, value := range members {
		if !slices.Contains(known, name) {
			return fmt.Errorf("unknown member %q", name)
		}
		if string(value) == "null" {
			return fmt.Errorf("%s is null", name)
		}
	}
	return json.Unmarshal(data, into)
}

// UnmarshalJSON takes exactly what the description allows.
func (r *LockRequest) UnmarshalJSON(data []byte) error {
	var request struct {
		StopServices *bool `json:"stop_services"`
	}
	if err := decodeExactly(data, &request, "stop_services"); err != nil {
		return err
	}
	if request.StopServices == nil {
		return errors.New("stop_services is missing")
	}
	r.StopServices = *request.StopServices
	return nil
}

// UnmarshalJSON takes exactly what the description allows: a size of 0 would mean that none is given.
func (r *GrowRequest) UnmarshalJSON(data []byte) error {
	var request struct {
		ToBytes *int64 `json:"to_bytes"`
		ByBytes *int64 `json:"by_bytes"`
		DryRun  bool   `json:"dry_run"`
	}
	if err := decodeExactly(data, &request, "to_bytes", "by_bytes", "dry_run"); err != nil {
		return err
	}
	if request.ToBytes != nil && request.ByBytes != nil {
		return errors.New("to_bytes and by_bytes exclude each other")
	}
	r.DryRun = request.DryRun
	return errors.Join(takeSize(&r.ToBytes, request.ToBytes), takeSize(&r.ByBytes, request.ByBytes))
}

// maxSize is 1 EiB, as far as ext4 goes; what is larger is a mistake.
const maxSize = 1 << 60

func takeSize(into, given *int64) error {
	if given == nil {
		return nil
	}
	if *given < 1 || *given > maxSize {
		return fmt.Errorf("a size of %d bytes: at least 1, at most %d", *given, int64(maxSize))
	}
	*into = *given
	return nil
}

// UnmarshalJSON takes exactly what the description allows.
func (r *MigrateRequest) UnmarshalJSON(data []byte) error {
	type request MigrateRequest // without this method
	return decodeExactly(data, (*request)(r), "store", "dry_run")
}
