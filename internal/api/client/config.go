package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"culvert/internal/api"
)

// Config says how to reach a cluster and who we are there. `culvert init` and
// the lab write it as JSON.
type Config struct {
	Cluster string `json:"cluster"`
	// Socket is the path of a manager's UNIX socket. If set, it is used and
	// the rest is not: the kernel tells the manager who we are.
	Socket string `json:"socket,omitempty"`
	// Managers are addresses with port, asked in this order.
	Managers []string `json:"managers,omitempty"`
	// CA, Cert and Key are paths of PEM files: the cluster's authority, our
	// certificate and its key. Relative ones are relative to the file.
	CA   string `json:"ca,omitempty"`
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// LabConfig is where the lab named default keeps its configuration. A machine
// of no cluster uses it without being told.
const LabConfig = "/run/culvert/lab/default/client.json"

// Find looks for the configuration: the file that CULVERT_CONFIG names, else
// the user's own, else the lab's. It returns the path too. Errors are
// *api.Refusal.
func Find(getenv func(string) string, labConfig string) (Config, string, error) {
	if path := getenv("CULVERT_CONFIG"); path != "" {
		cfg, err := Load(path)
		return cfg, path, err
	}
	own := ownPath(getenv)
	for _, path := range []string{own, labConfig} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		cfg, err := Load(path)
		return cfg, path, err
	}
	return Config{}, "", api.Refuse(api.CodeNoCluster, "nobody was asked", fmt.Sprintf("there is no %s and no lab %q runs", own, "default"), "")
}

func ownPath(getenv func(string) string) string {
	dir := getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := getenv("HOME")
		if home == "" {
			home = "/root"
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "culvert", "config.json")
}

// Load reads and checks one configuration file. Errors are *api.Refusal with
// CodeFile.
func Load(path string) (Config, error) {
	bad := func(why, cure string) (Config, error) {
		return Config{}, api.Refuse(api.CodeFile, "configuration "+path+" was not used", why, cure)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return bad(cause(err), "check CULVERT_CONFIG, or make the file: culvert init")
	}
	var cfg Config
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return bad(err.Error(), "it has cluster, socket, managers, ca, cert, key")
	}
	if dec.More() {
		return bad("something follows the configuration", "remove what follows the closing brace")
	}
	for _, p := range []*string{&cfg.Socket, &cfg.CA, &cfg.Cert, &cfg.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	if cfg.Socket != "" {
		return cfg, nil
	}
	if len(cfg.Managers) == 0 {
		return bad("it names no manager and no socket", "add managers: [\"192.0.2.11:7443\"]")
	}
	for _, m := range cfg.Managers {
		if host, port, err := net.SplitHostPort(m); err != nil || host == "" || port == "" {
			return bad(fmt.Sprintf("manager %q is no address with port", m), "write it like 192.0.2.11:7443 or [2001:db8::11]:7443")
		}
	}
	for _, f := range []struct{ name, path string }{{"ca", cfg.CA}, {"cert", cfg.Cert}, {"key", cfg.Key}} {
		if f.path == "" {
			return bad("it names no "+f.name, "add the path of the PEM file")
		}
	}
	return cfg, nil
}

// Save writes the configuration, readable for its owner only, whole or not at
// all.
func Save(path string, cfg Config) error {
	data, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("configuration as JSON: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("directory of configuration: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*")
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("configuration file: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// cause is the plain word of a system error, without path and operation.
func cause(err error) string {
	var pe *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file"
	case errors.Is(err, fs.ErrPermission):
		return "it may not be read by this user"
	case errors.As(err, &pe):
		return pe.Err.Error()
	}
	return err.Error()
}
