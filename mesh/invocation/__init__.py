"""Service invocation: one app calls another by its id.

`target` reads whom a request calls, `headers` decides which headers travel, `caller` finds the app and passes the
call on, `callee` hands a call to the app beside this sidecar.
"""

from mesh.invocation.callee import Callee
from mesh.invocation.caller import Caller, External, InvocationFailed

__all__ = ["Callee", "Caller", "External", "InvocationFailed"]
