// Package rpcerr carries refusals over connect: a refusal becomes an error
// detail beside the nearest code of the protocol, so that plain gRPC clients
// see something sensible, and becomes the same refusal again on the other side.
package rpcerr

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
)

// codes are the protocol's words for our exit codes.
var codes = map[api.Exit]connect.Code{
	api.ExitUsage:       connect.CodeInvalidArgument,
	api.ExitUnreachable: connect.CodeUnavailable,
	api.ExitRefused:     connect.CodeFailedPrecondition,
	api.ExitNotAllowed:  connect.CodePermissionDenied,
	api.ExitNotFound:    connect.CodeNotFound,
	api.ExitConflict:    connect.CodeAborted,
}

// reads are the calls that ask for nothing to be changed.
var reads = map[string]bool{
	culvertv1connect.APIListProcedure:        true,
	culvertv1connect.APIWatchProcedure:       true,
	culvertv1connect.APIWaitProcedure:        true,
	culvertv1connect.APIStatusProcedure:      true,
	culvertv1connect.APIExplainPathProcedure: true,
	culvertv1connect.AgentsResolveProcedure:  true,
	culvertv1connect.LocalTablesProcedure:    true,
	culvertv1connect.LocalPrepareProcedure:   true,
}

// Reads reports whether a procedure, as connect names it, changes nothing: its
// outcome is never in doubt, it was answered or not. An unknown one is taken
// for a change.
func Reads(procedure string) bool { return reads[procedure] }

// Encode makes the error that a handler returns. A refusal travels whole. The
// end of the caller's context stays what it is. Anything else is a defect or
// the store's trouble: the caller learns only that the outcome is not known,
// the cause stays for the server's own log. nil stays nil.
func Encode(err error) error {
	if err == nil {
		return nil
	}
	var ready *connect.Error
	if errors.As(err, &ready) && !ready.IsRemote() {
		return err
	}
	var ref *api.Refusal
	switch {
	case errors.As(err, &ref):
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, "the call was ended early").WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, "the time for the call was over").WithCause(err)
	default:
		ref = api.Refuse(api.CodeUnknown, "the call was not finished", "the server met an obstacle that its log describes", "")
	}
	code, ok := codes[ref.Exit()]
	if !ok {
		code = connect.CodeFailedPrecondition
	}
	out := connect.NewError(code, ref.Error()).WithCause(err)
	if detail, derr := connectproto.NewErrorDetail(ref.PB()); derr == nil {
		out = out.WithDetail(detail)
	}
	return out
}

// Refusal takes the refusal out of an error that a call returned; nil if it
// carries none.
func Refusal(err error) *api.Refusal {
	var ref *api.Refusal
	if errors.As(err, &ref) {
		return ref
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	for _, d := range ce.Details() {
		msg, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue
		}
		if pb, ok := msg.(*culvertv1.Refusal); ok {
			return api.RefusalFromPB(pb)
		}
	}
	return nil
}
