"""Another release of the Docker engine than this machine's, for tests: as quick as this machine, on its own kernel.

    python -m tests.engines [--suite forky] [--store containerd] [--keep FOLDER] tests/containers/test_platform.py …

takes engine, containerd, runc and client with their libraries from another suite of Debian, and runs the tests that are
named with those in place of this machine's: in a mount namespace of its own, so that nothing here is changed. The tests
start the engine themselves, and make the images that they need.
"""
