"""Deployments as processes of this machine: the embedded Orchestrator."""

from .artifact import LocalArtifact
from .orchestrator import ProcessOrchestrator
from .sandbox import Level
from .selfcheck import Isolation
from .settings import ProcessSettings, network_environment

__all__ = ["Isolation", "Level", "LocalArtifact", "ProcessOrchestrator", "ProcessSettings", "network_environment"]
