package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// guestStates are what `report` may say, in the order of a migration.
var guestStates = []string{"incoming", "running", "leaving", "paused", "gone"}

// jsonReport is the document of `report`.
type jsonReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Device     string `json:"device"`
	State      string `json:"state"` // unknown, unclaimed, elsewhere, expected, arriving, here
	Reason     string `json:"reason,omitempty"`
}

// guestMeans says what a device's state means.
var guestMeans = map[string]string{
	"unknown":   "it is in no bridge of Culvert's",
	"unclaimed": "no port claims it",
	"elsewhere": "its guest is on another host",
	"expected":  "its guest is expected here: it may come",
	"arriving":  "its guest is here, and the manager has not agreed yet",
	"here":      "its guest is here",
}

// reportCommand is for hypervisors that the agent does not watch by itself.
func (s *session) reportCommand() *cobra.Command {
	var socket string
	var wait time.Duration
	c := verb("report DEVICE STATE", "On a host: say what a hypervisor does with the guest behind a device",
		"  culvert report tap0 incoming --wait 5s    # at the destination, before the guest is moved\n"+
			"  culvert report tap0 leaving               # at the source, when it was stopped\n"+
			"  culvert report tap0 running               # at the destination, when it goes on",
		exactly("DEVICE", "STATE"),
		func(c *cobra.Command, args []string) error {
			if len(args[0]) > maxDevice || strings.ContainsAny(args[0], "/ \t\n:") {
				return &overlay.FieldError{Field: "DEVICE", Value: args[0], Allowed: "the name of a network device of this host"}
			}
			if !strings.Contains(" "+strings.Join(guestStates, " ")+" ", " "+args[1]+" ") {
				return &overlay.FieldError{Field: "STATE", Value: args[1], Allowed: strings.Join(guestStates, ", ")}
			}
			if wait < 0 || wait > 10*time.Second {
				return &overlay.FieldError{Field: "--wait", Value: wait.String(), Allowed: "0s to 10s"}
			}
			if err := s.check(); err != nil {
				return err
			}
			l := client.NewLocal(socket)
			defer l.Close()
			ctx, cancel := context.WithTimeout(c.Context(), callTimeout+wait)
			defer cancel()
			r, err := l.ReportGuest(ctx, &culvertv1.ReportGuestRequest{Device: args[0], State: args[1], WaitMilliseconds: uint32(wait.Milliseconds())})
			if err != nil {
				return err
			}
			if s.output == "json" {
				return writeJSON(s.env.Stdout, jsonReport{api.Version, "GuestReport", args[0], r.GetState(), r.GetReason()})
			}
			line := fmt.Sprintf("device %s: %s", args[0], guestMeans[r.GetState()])
			if r.GetReason() != "" {
				line += " (" + r.GetReason() + ")"
			}
			_, err = fmt.Fprintln(s.env.Stdout, line)
			return err
		})
	c.Flags().DurationVar(&wait, "wait", 0, "wait until an incoming guest is expected here, or a running one is here")
	c.Flags().StringVar(&socket, "agent-socket", defaultAgentSocket, "UNIX socket of the agent")
	return c
}
