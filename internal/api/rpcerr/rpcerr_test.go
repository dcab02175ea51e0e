package rpcerr

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"culvert/internal/api/culvertv1"
)

// TestReads: each call of each service either changes something or is among
// the reads; a new one has to be put into one of the two.
func TestReads(t *testing.T) {
	changes := map[string]bool{
		"/culvert.api.v1alpha1.API/Put": true, "/culvert.api.v1alpha1.API/Delete": true, "/culvert.api.v1alpha1.API/CreateToken": true,
		"/culvert.agent.v1.Agents/Attach": true, "/culvert.agent.v1.Joining/Join": true,
		"/culvert.agent.v1.Local/AttachPort": true, "/culvert.agent.v1.Local/DetachPort": true, "/culvert.agent.v1.Local/ReportGuest": true,
	}
	found := 0
	for _, file := range []protoreflect.FileDescriptor{culvertv1.File_culvertv1_api_proto, culvertv1.File_culvertv1_agent_proto} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				name := "/" + string(s.FullName()) + "/" + string(s.Methods().Get(j).Name())
				if found++; Reads(name) == changes[name] {
					t.Errorf("%s: it reads %v, it changes %v, want one of the two", name, Reads(name), changes[name])
				}
			}
		}
	}
	if want := len(reads) + len(changes); found != want {
		t.Errorf("the services have %d calls, want the %d that are named", found, want)
	}
	if Reads("/culvert.api.v1alpha1.API/Later") {
		t.Error("an unknown call is taken for a read")
	}
}
