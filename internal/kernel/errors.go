package kernel

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
)

// errno is an error number in a netlink answer, with the kernel's words where
// it has some (NLMSGERR_ATTR_MSG).
type errno struct {
	no   unix.Errno
	text string
}

func (e *errno) Error() string {
	if e.text != "" {
		return e.no.Error() + ": " + e.text
	}
	return e.no.Error()
}

func (e *errno) Unwrap() error { return e.no }

// errInterrupted is a dump that the kernel marked NLM_F_DUMP_INTR: something
// changed meanwhile and entries may be missing or double.
var errInterrupted = errors.New("interrupted dump")

// errNoAnswer is a netlink request without an answer within answerTimeout.
var errNoAnswer = errors.New("no answer from the kernel")

// errAbsent is a link that is not there, or no longer.
var errAbsent = errors.New("no such device")

// classes is what each error number means to the core. ENOBUFS of a receive is
// a socket overflow and never gets here: sock turns it into errNoAnswer.
var classes = map[unix.Errno]hoststate.Class{
	unix.EEXIST:          hoststate.ClassExists,
	unix.ENOENT:          hoststate.ClassNotFound,
	unix.ESRCH:           hoststate.ClassNotFound,
	unix.ENODEV:          hoststate.ClassGone,
	unix.ENXIO:           hoststate.ClassGone,
	unix.ENOSPC:          hoststate.ClassFull,
	unix.ENOBUFS:         hoststate.ClassFull,
	unix.EXFULL:          hoststate.ClassFull,
	unix.ENOMEM:          hoststate.ClassFull,
	unix.E2BIG:           hoststate.ClassFull, // a map of the programs' that holds what it may
	unix.EMFILE:          hoststate.ClassFull,
	unix.ENFILE:          hoststate.ClassFull,
	unix.EINTR:           hoststate.ClassTransient,
	unix.EAGAIN:          hoststate.ClassTransient,
	unix.EBUSY:           hoststate.ClassTransient,
	unix.ETIMEDOUT:       hoststate.ClassTransient,
	unix.ENETDOWN:        hoststate.ClassTransient,
	unix.EPERM:           hoststate.ClassRefused,
	unix.EACCES:          hoststate.ClassRefused,
	unix.EOPNOTSUPP:      hoststate.ClassRefused,
	unix.EAFNOSUPPORT:    hoststate.ClassRefused,
	unix.EPROTONOSUPPORT: hoststate.ClassRefused,
	unix.EINVAL:          hoststate.ClassRefused,
	unix.ERANGE:          hoststate.ClassRefused,
	unix.EADDRINUSE:      hoststate.ClassRefused,
	unix.EADDRNOTAVAIL:   hoststate.ClassRefused,
	unix.ELOOP:           hoststate.ClassRefused,
	unix.EMSGSIZE:        hoststate.ClassRefused,
	unix.ENAMETOOLONG:    hoststate.ClassRefused,
}

// Classify says what an error of this package means. It never panics; an
// error it does not know is ClassUnknown.
func Classify(err error) hoststate.Class {
	var no unix.Errno
	switch {
	case err == nil:
		return hoststate.ClassOK
	case errors.Is(err, errInterrupted), errors.Is(err, errNoAnswer), errors.Is(err, errTruncated),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return hoststate.ClassTransient
	case errors.Is(err, errAbsent):
		return hoststate.ClassGone
	case errors.As(err, &no):
		if c, ok := classes[no]; ok {
			return c
		}
		return hoststate.ClassUnknown
	case errors.Is(err, fs.ErrNotExist):
		return hoststate.ClassGone
	}
	return hoststate.ClassUnknown
}
