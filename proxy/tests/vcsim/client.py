"""A real vSphere client (pyvmomi) against /sdk: what a console user does, and what one may not do.

client.py HOST PORT TICKET VM OTHER_VM    prints the acquired console ticket as JSON
"""
import json
import ssl
import sys
import time

from pyVmomi import SoapStubAdapter, vim, vmodl

host, port, ticket, vm_id, other_id = sys.argv[1:6]
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
stub = SoapStubAdapter(host=host, port=int(port), sslContext=context, version="vim.version.version9")
service = vim.ServiceInstance("ServiceInstance", stub)
content = service.RetrieveContent()
assert content.about.apiType == "VirtualCenter", content.about
service.CurrentTime()
vm = vim.VirtualMachine(vm_id, stub)
other = vim.VirtualMachine(other_id, stub)


def refused(what, call, fault):
    try:
        call()
    except fault:
        return
    raise AssertionError(what + " was not refused with " + fault.__name__)


refused("power without a session", vm.PowerOff, vim.fault.NotAuthenticated)
refused("a bad ticket", lambda: content.sessionManager.CloneSession("cst-VCT-nonsense"), vim.fault.InvalidLogin)
session = content.sessionManager.CloneSession(ticket)
assert content.sessionManager.SessionIsActive(session.key, session.userName)
assert content.sessionManager.currentSession.userName == session.userName


def wait(task):
    for _ in range(200):
        state = task.info.state
        if state == vim.TaskInfo.State.success:
            return
        assert state != vim.TaskInfo.State.error, task.info.error
        time.sleep(0.05)
    raise AssertionError("the task does not end")


wait(vm.PowerOff())
assert vm.runtime.powerState == "poweredOff", vm.runtime.powerState
refused("a ticket of a VM that is off", lambda: vm.AcquireTicket("mks"), vim.fault.InvalidState)
wait(vm.PowerOn())
assert vm.runtime.powerState == "poweredOn", vm.runtime.powerState

spec = vmodl.query.PropertyCollector
collector = content.propertyCollector


def filter_of(obj, kind, path):
    return spec.FilterSpec(propSet=[spec.PropertySpec(type=kind, pathSet=[path])], objectSet=[spec.ObjectSpec(obj=obj)])


found = collector.RetrievePropertiesEx([filter_of(vm, vim.VirtualMachine, "name")], spec.RetrieveOptions())
assert found.objects[0].obj._moId == vm_id
made = collector.CreateFilter(filter_of(vm, vim.VirtualMachine, "runtime.powerState"), False)
update = collector.WaitForUpdatesEx("", spec.WaitOptions(maxWaitSeconds=2))
assert update.filterSet, update
made.Destroy()

denied = vim.fault.NoPermission
refused("another VM's power", other.PowerOff, denied)
refused("another VM's ticket", lambda: other.AcquireTicket("mks"), denied)
refused("another VM's properties", lambda: other.runtime, denied)
refused("another VM's properties by the collector",
        lambda: collector.RetrievePropertiesEx([filter_of(other, vim.VirtualMachine, "name")], spec.RetrieveOptions()), denied)
refused("the inventory", lambda: content.rootFolder.childEntity, denied)
refused("another operation", vm.Destroy, denied)
refused("a clone ticket", content.sessionManager.AcquireCloneTicket, denied)
refused("another kind of ticket", lambda: vm.AcquireTicket("device"), denied)
refused("more memory", lambda: vm.Reconfigure(vim.vm.ConfigSpec(memoryMB=1)), denied)

acquired = vm.AcquireTicket("mks")
print(json.dumps({"ticket": acquired.ticket, "cfgFile": acquired.cfgFile, "host": acquired.host, "port": acquired.port,
                  "thumbprint": acquired.sslThumbprint}))
content.sessionManager.Logout()
refused("power after the logout", vm.PowerOff, vim.fault.NotAuthenticated)
