"""The process beside each app: starts it, keeps its output, enforces its limits, records its end.

Standard library only, and little of it: one shim runs per app and must start in milliseconds. Nothing here may
import from the rest of the platform.
"""
