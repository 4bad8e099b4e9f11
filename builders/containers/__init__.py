"""Container images: Dockerfiles built by BuildKit within limits, scanned, recorded and pruned.

`builder.DockerBuilder` is the door. Only that module imports the Docker SDK; the rest needs the standard library.
"""
