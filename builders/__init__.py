"""Source tree in, artifact out. Knows nothing of users, databases or HTTP.

Public names; `python -m builders PATH [--dry-run]` is the same from a shell.
"""
