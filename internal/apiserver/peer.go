package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"culvert/internal/trust"
)

// Socket listens on a UNIX socket that only its owner may open: mode 0600, in
// a directory that is made with 0700 if it is missing. A socket that a dead
// process left behind is replaced; one that answers is an error.
func Socket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("directory of socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if c, derr := net.Dial("unix", path); derr == nil {
			_ = c.Close()
			return nil, fmt.Errorf("socket %s: another daemon answers there", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("socket of a dead daemon: %w", err)
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// Between bind and chmod the mode is the umask's; whoever connects in that
	// instant still meets the check of its uid.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("mode of socket: %w", err), l.Close())
	}
	return l, nil
}

// ConnContext is for http.Server.ConnContext: who is at the other end of a UNIX
// socket is asked of the kernel (SO_PEERCRED, unix(7)). Root, and the user that
// this process runs as, are operators; any other user is a stranger, whatever
// the mode of the file came to be. Other connections are left alone.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	uid, err := peerUID(uc)
	if err != nil || (uid != 0 && uid != uint32(os.Getuid())) {
		return ctx
	}
	id := trust.Identity{Role: trust.RoleOperator, UID: "uid-" + strconv.FormatUint(uint64(uid), 10), Name: "local"}
	if uid == 0 {
		id.Name = "root"
	}
	return WithIdentity(ctx, id)
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("socket of peer: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("socket of peer: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("credentials of peer: %w", credErr)
	}
	return cred.Uid, nil
}

// Identify adds the identity in a caller's certificate, verified by anchor, to
// the context of each request over TLS. A request without one goes on as a
// stranger's: the join call needs that, every other refuses it.
func Identify(anchor *trust.Anchor, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			if id, err := anchor.PeerIdentity(r.TLS); err == nil {
				r = r.WithContext(WithIdentity(r.Context(), id))
			}
		}
		next.ServeHTTP(w, r)
	})
}
