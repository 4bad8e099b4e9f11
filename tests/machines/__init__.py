"""A machine as most users have one, for tests: systemd, control groups of version 2 alone, and its Debian's Docker.

    python -m tests.machines [--suite trixie] [--keep FOLDER] tests/process/test_limits.py …

makes its disk by debootstrap, starts it by qemu (with KVM where the processor has it; else every instruction is
emulated, and all takes ten times as long), runs the tests that are named in it, and removes it.
"""
