"""Compiles what was installed to bytecode. Run where packages are installed, by the environment's own interpreter.

Owns: compiling every module below the given folder, giving the compiled files back to the package cache, so that the
next environment gets them with its packages instead of compiling again, and putting the start hook in place. Does not
own: when it runs. Invariant: standard library only, works on every supported Python; a file that does not compile
is named and skipped.

Bytecode is made unchecked (PEP 552): environments and snapshots never change once they are sealed.
"""

from __future__ import annotations

import compileall
import errno
import os
import py_compile
import shutil
import sys

_SKIPPED = ("__pycache__", "tests")
"""Packages carry thousands of test modules that no app imports."""


def main(argv: list[str]) -> int:
    """`seal FOLDER [CACHE [HOOK]]`: FOLDER is compiled; CACHE is uv's cache, where new bytecode is linked back.

    HOOK is the text of a module that every interpreter of this environment runs as it starts.
    """
    folder = argv[1]
    missing = [path for path in _sources(folder) if not os.path.exists(_compiled(path))]
    if missing:
        _compile(missing)
        print(f"Compiled {len(missing)} files")
        if len(argv) > 2:
            _give_back(folder, os.path.join(argv[2], "archive-v0"))
    if len(argv) > 3:
        hook = os.path.join(folder, "_spaces_start.py")
        _write(hook, argv[3])
        _compile_some([hook])
        _write(os.path.join(folder, "_spaces_start.pth"), "import _spaces_start\n")
    return 0


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _sources(folder: str) -> list[str]:
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        found += [os.path.join(base, name) for name in files if name.endswith(".py")]
    return found


def _compiled(path: str) -> str:
    base, name = os.path.split(path)
    return os.path.join(base, "__pycache__", f"{name[:-3]}.{sys.implementation.cache_tag}.pyc")


def _compile(paths: list[str]) -> None:
    if len(paths) < 40 or not hasattr(os, "fork"):
        _compile_some(paths)
        return
    paths = sorted(paths, key=_size, reverse=True)  # large ones first: the workers end at the same time
    workers = []
    count = max(1, min(os.cpu_count() or 1, 8))
    for n in range(count):
        pid = os.fork()
        if pid == 0:
            _compile_some(paths[n::count])
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)


def _compile_some(paths: list[str]) -> None:
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for path in paths:
        if not os.path.islink(path):
            compileall.compile_file(path, quiet=2, invalidation_mode=mode)


def _size(path: str) -> int:
    return os.lstat(path).st_size


def _give_back(site: str, archive: str) -> None:
    """Put bytecode beside the unpacked wheels it was compiled from; uv takes whole folders into new environments."""
    installed = {name for name in os.listdir(site) if name.endswith(".dist-info")}
    if not os.path.isdir(archive):
        return
    for wheel in os.scandir(archive):
        if not installed.intersection(os.listdir(wheel.path) if wheel.is_dir() else ()):
            continue
        for source in _sources(wheel.path):
            ready = _compiled(os.path.join(site, os.path.relpath(source, wheel.path)))
            target = _compiled(source)
            if os.path.exists(ready) and not os.path.exists(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                try:
                    _put(ready, target)
                except FileExistsError:  # another build was first
                    continue
                except OSError as error:  # only speed is lost
                    print(f"Bytecode is not shared: {error}")
                    return


def _put(source: str, target: str) -> None:
    """By a link, or a whole copy where the cache is a file system of its own."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        new = f"{target}.{os.getpid()}"
        shutil.copyfile(source, new)
        os.replace(new, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
