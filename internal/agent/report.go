package agent

import (
	"context"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/rpcerr"
	"culvert/internal/hoststate"
)

// maxReportWait bounds how long ReportGuest holds a hypervisor up.
const maxReportWait = 10 * time.Second

// reportPoll is how often ReportGuest looks whether what it waits for has come.
const reportPoll = 2 * time.Millisecond

// ReportGuest takes a hypervisor's word on the guest behind a device.
func (l local) ReportGuest(ctx context.Context, req *culvertv1.ReportGuestRequest) (*culvertv1.ReportGuestResponse, error) {
	what := "The report was not taken"
	state, ok := hoststate.ParseNICState(req.GetState())
	if !ok {
		return nil, rpcerr.Encode(api.Refuse(api.CodeField, what, "state is "+req.GetState()+": allowed are incoming, running, leaving, paused and gone", ""))
	}
	if n := len(req.GetDevice()); n < 1 || n > 15 {
		return nil, rpcerr.Encode(api.Refuse(api.CodeDevice, what, "a device's name has 1 to 15 characters", ""))
	}
	if len(req.GetVm()) > 255 {
		return nil, rpcerr.Encode(api.Refuse(api.CodeField, what, "a guest's name has at most 255 bytes", ""))
	}
	l.a.Guests(ctx, "report", false, false, []hoststate.NIC{{Device: req.GetDevice(), VM: req.GetVm(), State: state}})
	ctx, cancel := context.WithTimeout(ctx, min(time.Duration(req.GetWaitMilliseconds())*time.Millisecond, maxReportWait)+time.Second)
	defer cancel()
	end := time.Now().Add(min(time.Duration(req.GetWaitMilliseconds())*time.Millisecond, maxReportWait))
	tick := time.NewTicker(reportPoll)
	defer tick.Stop()
	for {
		got, err := l.guestState(ctx, req.GetDevice())
		if err != nil || reported(state, got.GetState()) || time.Now().After(end) {
			return got, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return got, ctx.Err()
		}
	}
}

func (l local) guestState(ctx context.Context, device string) (*culvertv1.ReportGuestResponse, error) {
	ch := make(chan *culvertv1.ReportGuestResponse, 1)
	if !l.a.onLoop(ctx, func() {
		s, why := l.a.core.GuestState(device)
		ch <- &culvertv1.ReportGuestResponse{State: s, Reason: why}
	}) {
		return nil, ctx.Err()
	}
	return <-ch, nil
}

// reported says whether a guest in a state of the hypervisor's is as far with
// us as it can come.
func reported(s hoststate.NICState, state string) bool {
	switch s {
	case hoststate.NICIncoming:
		return state == "expected" || state == "here"
	case hoststate.NICRunning:
		return state == "here"
	}
	return true
}
