"""Apps as containers of a Docker engine: the Orchestrator, Freezer and Volumes ports.

Start reading at orchestrator.py; spec.py says what a container is, fence.py what it may reach, disks.py what it writes.
"""

from .fence import Fence, build_fence
from .orchestrator import DockerOrchestrator
from .settings import DockerSettings

__all__ = ["DockerOrchestrator", "DockerSettings", "Fence", "build_fence"]
