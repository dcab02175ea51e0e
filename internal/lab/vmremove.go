package lab

import (
	"context"
	"errors"
	"os"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
)

// dropVM removes a VM from the machine and the state; its port stays declared.
func (l *Lab) dropVM(ctx context.Context, s *state, vm VM) error {
	var err error
	if vm.Qemu {
		err = machine{Guest: Guest{Lab: l.name, VM: vm.Name}, lab: l}.remove(ctx, vm.Processes)
	} else {
		err = (Guest{Lab: l.name, VM: vm.Name}).Remove(ctx)
	}
	if err != nil {
		return err
	}
	s.drop(vm.Name)
	if _, err := os.Lstat(l.dir()); err != nil {
		return nil // the lab itself is being removed
	}
	return l.save(s)
}

// RemoveVM removes the VM and, if it was declared, its port. One that is not
// there is no error.
func (l *Lab) RemoveVM(ctx context.Context, name string) (VMResult, error) {
	unlock, err := l.lock(ctx)
	if err != nil {
		return VMResult{}, err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return VMResult{}, err
	}
	vm, ok := s.vm(name)
	if !ok {
		return VMResult{VM: VM{Name: name}}, nil
	}
	if err := l.dropVM(ctx, s, vm); err != nil {
		return VMResult{}, err
	}
	r := VMResult{VM: vm, Changed: true}
	if !vm.Declared {
		return r, nil
	}
	client, err := l.dial()
	if err != nil {
		return r, err
	}
	defer client.Close()
	res, err := client.Delete(ctx, &culvertv1.DeleteRequest{Kind: "port", Tenant: vm.Tenant, Name: vm.Name})
	var ref *api.Refusal
	if errors.As(err, &ref) && ref.Exit() == api.ExitNotFound {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	hosts, err := awaitHosts(ctx, client, res.GetRevision())
	r.Pending = notExact(hosts)
	return r, err
}
