package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Ask asks the agent of this host whether an interface may start here, or
// arrive here from another host. Errors are *api.Refusal.
type Ask func(ctx context.Context, n hoststate.NIC, incoming bool) error

// askAgain is the pause before an agent that is not ready is asked again.
const askAgain = 200 * time.Millisecond

// Call is how libvirt calls its qemu hook (https://libvirt.org/hooks.html):
// OBJECT OPERATION SUBOPERATION EXTRA.
type Call struct {
	Domain, Operation, Sub string
}

// Gate answers one call of the hook: nil lets the guest go on, an error keeps
// it from starting or arriving and libvirt shows its text. It asks for the
// operations that come before a guest runs; all others pass. An agent that is
// not ready, or not there, is asked again until ctx ends.
//
// Nothing here calls libvirt, which waits for the hook with the domain locked.
func Gate(ctx context.Context, c Call, description io.Reader, ask Ask) error {
	// libvirt writes the description for every operation, and waits for that.
	desc, err := io.ReadAll(io.LimitReader(description, maxXML+1))
	if err != nil {
		return fmt.Errorf("read domain: %w", err)
	}
	if c.Sub != "begin" || !slices.Contains([]string{"prepare", "start", "restore", "migrate"}, c.Operation) {
		return nil
	}
	dom, err := ReadDomain(bytes.NewReader(desc))
	if err != nil {
		return api.Refuse(api.CodeDocument, "Guest "+text(c.Domain)+" was not let in", "its description is not understood: "+err.Error(), "See it: virsh dumpxml "+text(c.Domain))
	}
	for _, n := range dom.NICs {
		if n.Bridge != "" && !ours(n.Bridge) {
			continue
		}
		if err := patiently(ctx, n, c.Operation == "migrate", ask); err != nil {
			return refused(c.Domain, err)
		}
	}
	return nil
}

// refused names the guest in what is no word of the agent's.
func refused(guest string, err error) error {
	var no *api.Refusal
	if errors.As(err, &no) && (no.Code() == api.CodeNoAgent || no.Code() == api.CodeUnanswered) {
		return api.Refuse(no.Code(), "Guest "+text(guest)+" was not let in", no.PB().GetWhy(), no.PB().GetCure())
	}
	return err
}

// ours reports whether a bridge has the name of one of the cluster's networks.
func ours(bridge string) bool {
	vni, ok := overlay.VNIOfDevice(bridge)
	return ok && vni.Bridge() == bridge
}

// patiently asks until there is an answer that time does not change.
func patiently(ctx context.Context, n hoststate.NIC, incoming bool, ask Ask) error {
	for {
		err := ask(ctx, n, incoming)
		var no *api.Refusal
		if !errors.As(err, &no) {
			return err
		}
		wait := no.Code() == api.CodeNotReady || no.Code() == api.CodeNoAgent || no.Code() == api.CodeUnreachable || no.Code() == api.CodeUnanswered
		if no.Code() == api.CodeNoAgent && n.Bridge == "" && n.Port == "" {
			return nil // perhaps in none of our networks: with its bridge resolved it is asked about again
		}
		if !wait {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(askAgain):
		}
	}
}
