"""A self-hosted app platform: push a repository with git, get a public URL."""

__version__ = "0.1.0"
