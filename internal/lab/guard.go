package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// built is what the guard hears when its lab stands.
const built = "built"

// guard starts the process that takes a half-built lab down if this one dies.
// It listens on a pipe, whose other end closes with this process, however it
// ends. release tells it that building is over, one way or the other, and
// waits for its end.
func (l *Lab) guard() (release func(), err error) {
	if !l.cfg.Guard {
		return func() {}, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	defer r.Close()
	argv := append(l.cfg.Culvert[:len(l.cfg.Culvert):len(l.cfg.Culvert)], "lab", "guard", l.name)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("guard: %w", err)
	}
	return func() {
		io.WriteString(w, built)
		w.Close()
		cmd.Wait()
	}, nil
}

// Guard is the guard's own main: it reads from the pipe to its end and, if
// that came without word, takes down what is not ready. It takes the lab's
// lock, which the dead process has lost: if another command was faster and
// built the lab anew, there is nothing left to do.
func (l *Lab) Guard(ctx context.Context, pipe io.Reader) error {
	word, err := io.ReadAll(pipe)
	if err == nil && string(word) == built {
		return nil
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	s, err := l.load()
	if err == nil && s.Ready {
		unlock(false)
		return nil
	}
	defer unlock(true)
	if err != nil && !errors.Is(err, errNoLab) {
		return errors.Join(err, l.takeDown(ctx))
	}
	return l.takeDown(ctx)
}
