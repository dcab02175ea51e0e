package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
)

func TestClassify(t *testing.T) {
	tests := []struct {
		err  error
		want hoststate.Class
	}{
		{nil, hoststate.ClassOK},
		{unix.EEXIST, hoststate.ClassExists},
		{unix.ENOENT, hoststate.ClassNotFound},
		{unix.ESRCH, hoststate.ClassNotFound},
		{unix.ENODEV, hoststate.ClassGone},
		{unix.ENXIO, hoststate.ClassGone},
		{errAbsent, hoststate.ClassGone},
		{errNoPort, hoststate.ClassGone},
		{fs.ErrNotExist, hoststate.ClassGone}, // a sysctl of a device that went
		{unix.ENOSPC, hoststate.ClassFull},
		{unix.ENOBUFS, hoststate.ClassFull},
		{unix.EXFULL, hoststate.ClassFull},
		{unix.ENOMEM, hoststate.ClassFull},
		{unix.EINTR, hoststate.ClassTransient},
		{unix.EAGAIN, hoststate.ClassTransient},
		{unix.EBUSY, hoststate.ClassTransient},
		{errInterrupted, hoststate.ClassTransient},
		{errNoAnswer, hoststate.ClassTransient},
		{errTruncated, hoststate.ClassTransient},
		{context.Canceled, hoststate.ClassTransient},
		{context.DeadlineExceeded, hoststate.ClassTransient},
		{unix.EPERM, hoststate.ClassRefused},
		{unix.EACCES, hoststate.ClassRefused},
		{unix.EOPNOTSUPP, hoststate.ClassRefused},
		{unix.EAFNOSUPPORT, hoststate.ClassRefused},
		{unix.EINVAL, hoststate.ClassRefused},
		{unix.ERANGE, hoststate.ClassRefused},
		{unix.EADDRINUSE, hoststate.ClassRefused},
		{unix.ELOOP, hoststate.ClassRefused},
		{unix.EXDEV, hoststate.ClassUnknown},
		{unix.Errno(9999), hoststate.ClassUnknown},
		{errors.New("something else"), hoststate.ClassUnknown},
	}
	for _, tt := range tests {
		for _, err := range []error{tt.err, fmt.Errorf("make cvb1: %w", tt.err), errors.Join(errors.New("and"), tt.err)} {
			if tt.err == nil && err != nil {
				continue
			}
			if got := Classify(err); got != tt.want {
				t.Errorf("Classify(%v) = %v, want %v", err, got, tt.want)
			}
		}
	}
}

// TestEveryErrnoHasAClass: no number panics, and no number means success.
func TestEveryErrnoHasAClass(t *testing.T) {
	for n := range unix.Errno(4096) {
		c := Classify(&errno{no: n})
		if c == hoststate.ClassOK {
			t.Errorf("errno %d is ok", n)
		}
	}
}

func TestSettleKeepsTheKernelsWords(t *testing.T) {
	r := hoststate.Result{Text: "old"}
	settle(&r, fmt.Errorf("make cvx1: %w", &errno{no: unix.EINVAL, text: "VNI out of range"}))
	if r.Class != hoststate.ClassRefused || r.Text != "make cvx1: invalid argument: VNI out of range" {
		t.Errorf("%v %q", r.Class, r.Text)
	}
	settle(&r, nil)
	if r.Class != hoststate.ClassOK || r.Text != "" {
		t.Errorf("%v %q", r.Class, r.Text)
	}
}
