"""How long a process of the platform keeps a processor while others want it.

Owns: which share of the kernel's scheduling is asked for. Does not own: weights and limits of apps (`orchestrator`) and
of builds (`builders.containers.processor`).

Since Linux 6.12 a thread that wakes takes the processor at once from one that asked for longer slices than it, also
across control groups; otherwise it waits until the other has had its slice, milliseconds in which a visitor waits. What
nobody waits for by the millisecond asks for long ones: it gets as much of the processor as before, later. Threads and
processes that it starts inherit that, so it is nothing for a process that starts apps. Kernels before 6.12 ignore it.
sched_setattr(2), https://docs.kernel.org/scheduler/sched-eevdf.html
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct

log = logging.getLogger(__name__)

LONG_SLICE = 10_000_000
"""Nanoseconds. The kernel's own slices are 0.7 to 2.8 ms, by the number of processors."""
_ATTR = struct.Struct("=IIQiIQQQ")
"""struct sched_attr, version 0: size, policy, flags, nice, priority, runtime, deadline, period."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def take_long_slices() -> None:
    """Of the calling thread, and of all that it starts from now on. Says in the log where that cannot be had."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, 0, nice, 0, LONG_SLICE, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), ctypes.c_int(0), attributes, ctypes.c_uint(0)):
        # A sandbox that refuses the call: visitors wait a little longer now and then, nothing else.
        log.info("no long slices of processor time: %s", os.strerror(ctypes.get_errno()))
