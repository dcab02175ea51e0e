package apiservertest

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"culvert/internal/api/client"
	"culvert/internal/apiserver"
)

// Serve serves the API of b on a UNIX socket, as a manager does, and returns
// the path of a client configuration. It ends with the test.
func Serve(t testing.TB, b apiserver.Backend) (config string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cv") // t.TempDir may be too long for a socket (unix(7): 108 bytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := apiserver.Socket(filepath.Join(dir, "m.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	apiserver.New(b, apiserver.Options{Log: slog.New(slog.DiscardHandler)}).Mount(mux)
	ServeOn(t, l, mux)
	config = filepath.Join(dir, "client.json")
	data, err := json.Marshal(client.Config{Cluster: "culvert-7f3a", Socket: "m.sock"})
	if err == nil {
		err = os.WriteFile(config, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// ServeOn serves h on l until the test ends, with the identity of the peer of a
// UNIX socket in the context of its requests.
func ServeOn(t testing.TB, l net.Listener, h http.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: h, ConnContext: apiserver.ConnContext, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		cancel()
		_ = srv.Close()
		<-done
	})
}
