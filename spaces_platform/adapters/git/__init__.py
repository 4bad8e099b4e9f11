"""The RepoStore on the real git binary.

`store` creates and opens repositories, `repo` reads and commits, `transport` speaks smart HTTP bodies; `push_rules`
decides what a push may hold, `push_check` walks its objects, `hook` is the line to git's pre-receive. Read in this
order.
"""

from spaces_platform.adapters.git.process import ProcessLimits
from spaces_platform.adapters.git.push_rules import PushLimits
from spaces_platform.adapters.git.repo import GitRepo
from spaces_platform.adapters.git.store import GitRepoStore
from spaces_platform.adapters.git.transport import TransferLimits

__all__ = ["GitRepo", "GitRepoStore", "ProcessLimits", "PushLimits", "TransferLimits"]
