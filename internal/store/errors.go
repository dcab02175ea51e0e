package store

import (
	"errors"
	"fmt"
)

// What a store's refusals mean to its user. Compare with errors.Is; those with
// values have a type of their own as well, for errors.As.
var (
	// ErrFenced: another campaign has succeeded, or the lease has ended.
	// Nothing was changed. Drop what is in flight and read again.
	ErrFenced = errors.New("the decider's place was lost")
	// ErrUnknown: whether the transaction was applied is not known. Only
	// reading again tells. The cause is wrapped.
	ErrUnknown = errors.New("outcome not known")
	// ErrFull: the store takes no more puts until it is compacted and
	// defragmented. Nothing was changed; deletions still pass.
	ErrFull = errors.New("store is full")
	// ErrHeld: another id is the decider. See HeldError.
	ErrHeld = errors.New("another decider holds the place")
	// ErrCompacted: the history asked for is gone, or its reader is so far
	// behind that it is not kept for it. See CompactedError.
	ErrCompacted = errors.New("history was compacted")
	// ErrNotMonotone: the store's revision went back. See NotMonotoneError.
	ErrNotMonotone = errors.New("store revision went back")
	// ErrTooLarge: a batch or key is above its limit. Nothing was sent.
	ErrTooLarge = errors.New("larger than the store takes")
	// ErrRefused: the request could not be sent as it was. See RefusedError.
	ErrRefused = errors.New("refused before it was sent")
	// ErrClosed: the store, or this watch, was closed.
	ErrClosed = errors.New("store is closed")

	// ErrFailed: the store stopped itself (a disk that refused a write, a
	// damaged file); it acknowledges nothing any more. The cause is in the
	// error's text. Only a new process may open it again.
	ErrFailed = errors.New("store stopped itself")

	// ErrLocked: another process has the data directory open.
	ErrLocked = errors.New("data directory is in use by another process")
	// ErrOtherCluster: the data directory belongs to another cluster. See
	// OtherClusterError.
	ErrOtherCluster = errors.New("data directory belongs to another cluster")
	// ErrCorrupt: what the data directory holds cannot be read. The cause is
	// in the error's text.
	ErrCorrupt = errors.New("data directory is damaged")
)

// HeldError names the decider that stands in the way of a campaign.
type HeldError struct{ By string }

func (e *HeldError) Error() string { return fmt.Sprintf("%v: %q", ErrHeld, e.By) }

// Is makes errors.Is(err, ErrHeld) hold.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// CompactedError says up to which revision history is gone; 0 where the store
// did not say.
type CompactedError struct{ Rev int64 }

func (e *CompactedError) Error() string {
	return fmt.Sprintf("%v at revision %d", ErrCompacted, e.Rev)
}

// Is makes errors.Is(err, ErrCompacted) hold.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// NotMonotoneError says which revision came after which.
type NotMonotoneError struct{ Had, Got int64 }

func (e *NotMonotoneError) Error() string {
	return fmt.Sprintf("%v: had %d, then %d", ErrNotMonotone, e.Had, e.Got)
}

// Is makes errors.Is(err, ErrNotMonotone) hold.
func (e *NotMonotoneError) Is(target error) bool { return target == ErrNotMonotone }

// RefusedError says what about a request is not taken, with the value and what
// is allowed instead.
type RefusedError struct {
	What, Value, Allowed string
	TooLarge             bool // errors.Is(err, ErrTooLarge)
}

func (e *RefusedError) Error() string {
	v := e.Value
	if len(v) > 80 {
		v = v[:80] + "..."
	}
	return fmt.Sprintf("%s %q not taken: allowed are %s", e.What, v, e.Allowed)
}

// Is makes errors.Is hold for ErrRefused and, where it applies, ErrTooLarge.
func (e *RefusedError) Is(target error) bool {
	return target == ErrRefused || e.TooLarge && target == ErrTooLarge
}

// OtherClusterError says whose directory it is and whose was asked for.
type OtherClusterError struct{ Dir, Have, Want string }

func (e *OtherClusterError) Error() string {
	return fmt.Sprintf("%v: %s holds cluster %q, wanted %q", ErrOtherCluster, e.Dir, e.Have, e.Want)
}

// Is makes errors.Is(err, ErrOtherCluster) hold.
func (e *OtherClusterError) Is(target error) bool { return target == ErrOtherCluster }

func count(n int, of string) string { return fmt.Sprintf("%d %s", n, of) }
