// Console tickets, which the simulator lacks. Their contents are made up here; a test knows them beforehand: they are counted.
package simulator

import (
	"fmt"
	"sync/atomic"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Console is where tickets point.
var Console = struct {
	Host, Thumb, Path, Ticket string
	Port                      int32
	Old                       bool
	Issued                    func(kind, vm string)
}{Host: "127.0.0.1", Port: 902}

var issued int64

func nextTicket() string {
	if Console.Ticket != "" {
		return Console.Ticket
	}
	return fmt.Sprintf("console-ticket-%d", atomic.AddInt64(&issued, 1))
}

func (vm *VirtualMachine) cfgFile() string {
	if Console.Path != "" {
		return Console.Path
	}
	return vm.Config.Files.VmPathName
}

// AcquireTicket gives out tickets of the types mks and webmks for a machine that runs.
func (vm *VirtualMachine) AcquireTicket(ctx *Context, req *types.AcquireTicket) soap.HasFault {
	body := &methods.AcquireTicketBody{}
	if Console.Old {
		body.Fault_ = Fault("", &types.NotSupported{})
		return body
	}
	on := types.VirtualMachinePowerStatePoweredOn
	if vm.Runtime.PowerState != on {
		body.Fault_ = Fault("", &types.InvalidPowerState{RequestedState: on, ExistingState: vm.Runtime.PowerState})
		return body
	}
	if req.TicketType != "mks" && req.TicketType != "webmks" {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "ticketType"})
		return body
	}
	ticket := nextTicket()
	answer := types.VirtualMachineTicket{
		Ticket: ticket, CfgFile: vm.cfgFile(), Host: Console.Host, Port: Console.Port, SslThumbprint: Console.Thumb,
	}
	if req.TicketType == "webmks" {
		answer.Url = fmt.Sprintf("wss://%s:%d/ticket/%s", Console.Host, Console.Port, ticket)
	}
	if Console.Issued != nil {
		Console.Issued(req.TicketType, vm.Self.Value)
	}
	body.Res = &types.AcquireTicketResponse{Returnval: answer}
	return body
}

// AcquireMksTicket gives out a ticket as servers before 4.1 did.
func (vm *VirtualMachine) AcquireMksTicket(ctx *Context, req *types.AcquireMksTicket) soap.HasFault {
	if Console.Issued != nil {
		Console.Issued("old", vm.Self.Value)
	}
	return &methods.AcquireMksTicketBody{Res: &types.AcquireMksTicketResponse{Returnval: types.VirtualMachineMksTicket{
		Ticket: nextTicket(), CfgFile: vm.cfgFile(), Host: Console.Host, Port: Console.Port, SslThumbprint: Console.Thumb,
	}}}
}
