package apiserver_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"culvert/internal/apiserver"
	"culvert/internal/overlay"
)

func causeOf(rec overlay.Record) string {
	if t, ok := rec.(*overlay.Tenant); ok {
		return t.Cause
	}
	return ""
}

func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestSocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "sub", "m.sock")
	l, err := apiserver.Socket(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	if di, err := os.Stat(filepath.Dir(path)); err != nil || di.Mode().Perm() != 0o700 {
		t.Errorf("mode of directory %v, %v; want 0700", di.Mode(), err)
	}
	if l2, err := apiserver.Socket(path); err == nil {
		_ = l2.Close()
		t.Error("a socket that answers was taken over")
	}
	// A process that was killed leaves its socket behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = apiserver.Socket(path)
	if err != nil {
		t.Fatalf("the socket of a dead process is in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// dialAs connects from a thread that has another uid; the thread is thrown
// away with its goroutine.
func dialAs(path string, uid int) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		c, err := net.Dial("unix", path)
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	return <-done
}

func TestPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CULVERT_NOROOT") == "1" {
			t.Skip("CULVERT_NOROOT=1: another uid takes root")
		}
		t.Fatal("this test takes another uid and needs root; CULVERT_NOROOT=1 skips it")
	}
	dir := socketDir(t)
	path := filepath.Join(dir, "m.sock")
	l, err := apiserver.Socket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const other = 65534
	if err := dialAs(path, other); !errors.Is(err, syscall.EACCES) {
		t.Errorf("uid %d opened a socket of mode 0600 in a directory of mode 0700: %v", other, err)
	}
	// Were the modes wrong, the uid would still be asked for.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	accept := func() bool {
		t.Helper()
		if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		id, ok := apiserver.IdentityOf(apiserver.ConnContext(context.Background(), c))
		if ok && (id.Role.String() != "operator" || id.Name != "root" || id.UID != "uid-0") {
			t.Errorf("identity %+v", id)
		}
		return ok
	}
	if err := dialAs(path, other); err != nil {
		t.Fatal(err)
	}
	if accept() {
		t.Errorf("uid %d is an operator", other)
	}
	if err := dialAs(path, 0); err != nil {
		t.Fatal(err)
	}
	if !accept() {
		t.Error("root is a stranger")
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, ok := apiserver.IdentityOf(apiserver.ConnContext(context.Background(), a)); ok {
		t.Error("a connection that is no UNIX socket got an identity")
	}
}
