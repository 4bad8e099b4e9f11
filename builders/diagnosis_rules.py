"""What known failures look like in a log: tables only.

Owns: the patterns, and the words for cause and fix. Does not own: which log is looked at and in which order
(`diagnosis`). Invariant: every rule has a recorded log of a real failure in tests/builders/recorded, or a fact that
selects it; every reason is explained in docs/errors.md.

A rule's `cause` and `fix` may name the groups of its pattern, and `{where}`: the last place in the app's own files
that the traceback names.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    reason: str
    pattern: re.Pattern[str]
    cause: str
    fix: str


def _rule(reason: str, pattern: str, cause: str, fix: str) -> Rule:
    return Rule(reason, re.compile(pattern), cause, fix)


PACKAGE_OF: dict[str, str] = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "git": "gitpython",
    "github": "pygithub",
    "googleapiclient": "google-api-python-client",
    "jwt": "pyjwt",
    "llama_cpp": "llama-cpp-python",
    "magic": "python-magic",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "pkg_resources": "setuptools<81",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "pytorch": "torch",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tf": "tensorflow",
    "usb": "pyusb",
    "websocket": "websocket-client",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
"""Names people import, and the package that has them, where the two differ."""

DEBIAN_OF: dict[str, str] = {
    "libGL": "libgl1",
    "libgthread-2.0": "libglib2.0-0",
    "libglib-2.0": "libglib2.0-0",
    "libsndfile": "libsndfile1",
    "libportaudio": "libportaudio2",
    "libgomp": "libgomp1",
    "libSM": "libsm6",
    "libXext": "libxext6",
    "libXrender": "libxrender1",
    "libmagic": "libmagic1",
    "libcairo": "libcairo2",
    "libpq": "libpq5",
}
"""Shared libraries, and the Debian package that has them."""

STDLIB = frozenset(sys.stdlib_module_names)
_OWN = "app src lib utils util helpers config models model core modules common backend tools data"
OWN_NAMES = frozenset(_OWN.split())
"""Names that are nearly always a folder of the app itself, not a package."""

_REQUIREMENTS = "in requirements.txt"

BUILD_RULES: tuple[Rule, ...] = (
    _rule(
        "disk_full",
        r"No space left on device|os error 28\b",
        "The disk is full.",
        "Free some space on the machine, or ask for fewer and smaller packages.",
    ),
    _rule(
        "python_version",
        r"current Python version \((?P<have>[\d.]+)\) does not satisfy Python(?P<need>\S+) and "
        r"(?P<who>\S+) depends",
        "{who} needs Python {need}, this Space runs on {have}.",
        'Set python_version in README.md, for example python_version: "3.12", or choose another release of {who}.',
    ),
    _rule(
        "python_version",
        r"No module named '(?P<what>distutils)'|`(?P<other>distutils)` was removed",
        "A package is too old for this Python: it needs distutils, which Python 3.12 removed.",
        'Take a newer release of the package, or set python_version: "3.11" in README.md.',
    ),
    _rule(
        "package_renamed",
        r"`(?P<wrong>\S+)` is often confused for `(?P<right>[^`]+)`",
        "`{wrong}` is not the package you mean.",
        "Write `{right}` instead of `{wrong}` " + _REQUIREMENTS + ".",
    ),
    _rule(
        "package_not_found",
        r"Because (?:\S+ depends on )?(?P<name>[\w.\[\]-]+) was not found in the package registry",
        "There is no package named `{name}`.",
        "",
    ),
    _rule(
        "version_not_found",
        r"there (?:is|are) no versions? of (?P<what>\S+?)[,\s]",
        "There is no release {what}.",
        "Take a release that exists: remove the version " + _REQUIREMENTS + " to get the newest.",
    ),
    _rule(
        "bad_requirement",
        r"Couldn't parse requirement in `(?P<file>[^`]+)`|(?P<other>error: Failed to parse: )",
        "A line of {file} is not a requirement.",
        "Write one package per line, like `pandas==2.2.3`; no `pip install`, no single `=`.",
    ),
    _rule(
        "index_unreachable",
        r"Failed to fetch: |tcp connect error|dns error|error sending request for url|are you offline",
        "The package index cannot be reached.",
        "Try again; if it stays so, the machine's network or its package index settings need a look. In containers, "
        "the admin must allow an index on a private address with the setting egress_allow.",
    ),
    _rule(
        "git_requirement",
        r"Git operation failed|failed to clone into",
        "A requirement from git cannot be fetched.",
        "Check its address and that it is public; a release from the package index is more reliable.",
    ),
    _rule(
        "missing_pkg_resources",
        r"ModuleNotFoundError: No module named 'pkg_resources'",
        "A package needs pkg_resources to be built, which setuptools 81 removed.",
        "Take a newer release of the package, or put `setuptools<81` into pre-requirements.txt.",
    ),
    _rule(
        "missing_header",
        r"fatal error: (?P<what>\S+\.h): No such file|(?P<other>pkg-config --exists \S+)' returned non-zero"
        r"|(?P<tool>gcc|g\+\+|cc|cmake|rustc|cargo|pg_config)(?:'|\")?"
        r"(?:: (?:command )?not found|.*No such file or directory)",
        "A package has to be compiled, and this machine lacks what it needs for that ({what}{other}{tool}).",
        "Choose a release that comes as a ready wheel (often the newest, or a `-binary` twin); "
        "system packages need a container build.",
    ),
    _rule(
        "site_build_failed",
        r"npm (?:error|ERR!) (?P<what>Missing script: .*|code \S+|.+)",
        "The site's own build failed: {what}.",
        "Run the same command on your machine; app_build_command in README.md must be a script of package.json.",
    ),
    _rule(
        "system_package_not_found",
        r"E: Unable to locate package (?P<name>\S+)|E: Couldn't find any package by (?:glob|regex) '(?P<glob>[^']+)'"
        r"|E: Package '(?P<gone>[^']+)' has no installation candidate"
        r"|E: Version '[^']+' for '(?P<version>[^']+)' was not found",
        "Debian has no package `{name}{glob}{gone}{version}`.",
        "Look its name up on packages.debian.org (bookworm); names differ from those of pip and of other systems.",
    ),
    _rule(
        "mirror_unreachable",
        r"[EW]: Failed to fetch (?P<url>\S+)|Temporary failure resolving '(?P<host>[^']+)'",
        "A Debian mirror cannot be reached ({url}{other}{host}).",
        "Try again; if it stays so, the platform's network or its apt mirror setting needs a look.",
    ),
    _rule(
        "no_build_output",
        r'"/home/user/app/(?P<path>[^"]*?)/?"?:? not found',
        "The site's build did not make the folder `{path}`.",
        "Set app_file to the page inside the folder that the build makes, for example dist/index.html.",
    ),
    _rule(
        "copy_missing",
        r'(?:failed to compute cache key|failed to calculate checksum of ref \S+): "(?P<path>[^"]+)":? not found'
        r"|/buildkit-mount\d{1,20}/(?P<other>[^\s:]{1,200}): lstat",
        "COPY or a mount asks for `{path}{other}`, which is not there.",
        "Push the file; paths count from the repository's root, and .dockerignore hides what it names.",
    ),
    _rule(
        "image_not_found",
        r"(?<!\S)(?P<name>\S{1,300}): (?:pull access denied|not found|manifest unknown)"
        r"|manifest for (?P<other>\S+) not found",
        "There is no image {name}{other} that the platform may pull.",
        "Check its name and tag in FROM; it must be public.",
    ),
    _rule(
        "dockerfile_invalid",
        r"failed to create LLB definition: (?P<what>.+)|dockerfile parse error(?: on)? (?P<other>.+)",
        "BuildKit cannot read the Dockerfile: {what}{other}.",
        "Correct that instruction.",
    ),
    _rule(
        "out_of_memory",
        r"exit code: 137\b",
        "A step was killed, most likely because it took more memory than there is.",
        "Choose packages that come as ready wheels: compiling them takes most of the memory.",
    ),
    _rule(
        "package_build_failed",
        r"Failed to build `(?P<what>[^`]+)`|(?P<other>The build backend returned an error)",
        "The package {what} could not be built.",
        "Choose a release that comes as a ready wheel for this Python, or ask its authors.",
    ),
    _rule(
        "step_failed",
        r"(?:executor failed running \[|process \")(?:/bin/sh -c )?(?P<what>[^\]\"]{1,200}).*exit code: (?P<code>\d+)",
        "The step `RUN {what}` ended with exit code {code}.",
        "The lines above say why; the same step fails with `docker build` elsewhere.",
    ),
)

RUN_RULES: tuple[Rule, ...] = (
    _rule(
        "hf_folder",
        r"cannot import name 'HfFolder' from 'huggingface_hub'",
        "This release of gradio is too old for the huggingface_hub that is installed.",
        "Set a newer sdk_version in README.md, or add `huggingface_hub<1` to requirements.txt.",
    ),
    _rule(
        "missing_system_library",
        r"\b(?P<lib>lib[\w.+-]{1,80}?)\.so[\w.]{0,20}: cannot open shared object file",
        "The system library {lib} is missing ({where}).",
        "",
    ),
    _rule("missing_module", r"ModuleNotFoundError: No module named '(?P<name>[^']+)'", "", ""),
    _rule(
        "syntax_error",
        r"^(?P<kind>SyntaxError|IndentationError|TabError): (?P<what>.+)",
        "{where} is not valid Python: {what}.",
        "Correct that line and push again.",
    ),
    _rule(
        "import_error",
        r"ImportError: cannot import name '(?P<name>[^']+)' from (?:partially initialized module )?'(?P<module>[^']+)'",
        "`{name}` is not in the `{module}` that is installed ({where}).",
        "Pin the release of {module} that your code was written for " + _REQUIREMENTS + ", or change the import.",
    ),
    _rule(
        "out_of_memory",
        r"^(?:MemoryError\b.*|.*(?:Cannot allocate memory|DefaultCPUAllocator: can't allocate memory))",
        "The app ran out of memory ({where}).",
        "Load less at once or a smaller model, or choose hardware with more memory in the settings.",
    ),
    _rule(
        "disk_full",
        r"\[Errno 28\]|No space left on device",
        "The app's disk is full ({where}).",
        "Write less, delete what is no longer needed, or ask for more disk.",
    ),
    _rule(
        "port_in_use",
        r"\[Errno (?:98|48)\]|Address already in use|Cannot find empty port in range: (?P<range>\S+)\.",
        "The app asks for a port that another program has: its number is written into the code ({where}).",
        'Use the port you are told: gradio needs no server_port at all, others take int(os.environ["PORT"]).',
    ),
    _rule(
        "permission_denied",
        r"PermissionError: \[Errno 13\] Permission denied: '(?P<path>[^']+)'"
        r"|\[Errno 30\] Read-only file system: '(?P<ro>[^']+)'",
        "The app may not write to {path}{ro} ({where}).",
        "Write below the app's own folder, the home directory ($HOME) or the temporary directory ($TMPDIR).",
    ),
    _rule(
        "missing_variable",
        r"^KeyError: '(?P<name>[A-Z][A-Z0-9_]{2,})'",
        "The variable {name} is not set ({where}).",
        "Add {name} in the Space's settings, as a secret if it is a key or a password.",
    ),
    _rule(
        "missing_file",
        r"FileNotFoundError: \[Errno 2\] No such file or directory: '(?P<path>[^']+)'",
        "The file {path} does not exist ({where}).",
        "Push it with the app, or download it when the app starts; the working directory is the repository's root.",
    ),
    _rule(
        "no_gpu",
        r"Found no NVIDIA driver|Torch not compiled with CUDA enabled|No CUDA GPUs are available",
        "The app asks for a GPU, and this hardware has none ({where}).",
        'Use `device = "cuda" if torch.cuda.is_available() else "cpu"`, or choose GPU hardware in the settings.',
    ),
    _rule(
        "network_error",
        r"Name or service not known|Temporary failure in name resolution|nodename nor servname",
        "The app could not find a host on the network ({where}).",
        "Check the address; try again later, and let the app start without it where it can.",
    ),
    _rule(
        "numpy_abi",
        r"compiled using NumPy 1\.x cannot be run in|numpy\.dtype size changed",
        "A package was built for NumPy 1, and NumPy 2 is installed.",
        "Add `numpy<2` to requirements.txt, or take a newer release of the package.",
    ),
    _rule(
        "no_localhost",
        r"When localhost is not accessible, a shareable link must be created",
        "gradio could not reach itself on localhost.",
        "Do not set proxy variables for localhost: set NO_PROXY=localhost,127.0.0.1 in the settings.",
    ),
    _rule(
        "wrong_sdk",
        r"to view this Streamlit app on a browser, run it with|missing ScriptRunContext",
        "This is a Streamlit app, but it was started as a plain script.",
        "Set `sdk: streamlit` in README.md.",
    ),
)

GENERIC_EXCEPTION = re.compile(
    r"^(?:[\w]+\.)*(?P<kind>[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)|Exception)(?:: (?P<what>.*))?$"
)

REASONS: dict[str, str] = {
    "resolver_conflict": "two requirements contradict each other",
    "disk_full": "no space is left on the machine's or the app's disk",
    "python_version": "a package does not go with the Python that the Space runs on",
    "package_renamed": "a requirement has the name that is imported, not the one that is installed",
    "package_not_found": "a requirement names a package that does not exist",
    "version_not_found": "a requirement names a release that does not exist",
    "bad_requirement": "a line of a requirement file cannot be read",
    "index_unreachable": "the package index does not answer",
    "git_requirement": "a requirement from a git address cannot be fetched",
    "missing_pkg_resources": "a package needs pkg_resources to be built",
    "missing_header": "a package has to be compiled and the machine lacks a compiler, a header or a library",
    "site_build_failed": "`app_build_command` of a static Space failed",
    "package_build_failed": "a package's own build failed",
    "hf_folder": "an old gradio meets a new huggingface_hub",
    "missing_system_library": "a shared library of the operating system is missing",
    "missing_module": "a Python module is imported that is not installed",
    "syntax_error": "a file is not valid Python",
    "import_error": "a module lacks a name that is imported from it",
    "out_of_memory": "build or app needed more memory than it may use",
    "port_in_use": "the app asks for a port of its own choice, and another program has it",
    "permission_denied": "the app writes where it may not",
    "missing_variable": "the app reads a variable or secret that is not set",
    "missing_file": "the app opens a file that does not exist",
    "no_gpu": "the app asks for a GPU that the hardware does not have",
    "network_error": "a host name cannot be found",
    "numpy_abi": "a package was built for NumPy 1 and NumPy 2 is installed",
    "no_localhost": "gradio cannot reach itself through a proxy",
    "wrong_sdk": "a Streamlit app runs under another sdk",
    "build_failed": "a build command failed for a reason that is not in this list",
    "build_timeout": "the build took longer than it may",
    "too_many_processes": "the build started more processes than it may",
    "disk_limit": "the build wrote more than it may",
    "exception": "the app ended with an exception that is not in this list",
    "app_ended": "the app ended by itself, without an error",
    "exit_code": "the app ended with a status, and without a traceback",
    "killed": "the app was ended by a signal",
    "command_not_found": "the start command does not exist in the environment",
    "wrong_port": "the app listens on another port than the one it was told",
    "loopback_only": "the app listens on 127.0.0.1 only",
    "not_listening": "the app runs but listens on no port",
    "not_answering": "the app listens, but does not answer HTTP in time",
    "needs_container": "the Space needs something that only a container build has",
    "python_not_available": "the Python that was asked for is not on the machine",
    "npm_missing": "the site's build needs npm",
    "no_build_output": "the site's build did not make the folder that app_file names",
    "link_outside": "a symbolic link leaves the folder",
    "bad_system_package": "packages.txt has a line that is not the name of a Debian package",
    "system_package_not_found": "Debian has no package of a name in packages.txt or a Dockerfile",
    "mirror_unreachable": "a Debian mirror does not answer",
    "bad_path": "a folder has a name that cannot stand in a Dockerfile",
    "copy_missing": "COPY or a mount asks for a file that is not in the repository",
    "image_not_found": "FROM names an image that does not exist or is not public",
    "registry_unreachable": "the registry that FROM names does not answer",
    "dockerfile_refused": "the Dockerfile asks for something that no Space may do",
    "dockerfile_invalid": "the Dockerfile cannot be read",
    "step_failed": "a RUN step of the Dockerfile ended with an error that is not in this list",
    "secret_in_image": "the value of one of the Space's secrets is in the image",
    "secret_scan_timeout": "looking for secrets in the image took too long",
    "engine_unavailable": "the container engine does not answer",
    "bad_pyproject": "pyproject.toml cannot be read",
    "requirements_too_large": "a requirement file is too large",
    "requirements_encoding": "a requirement file is not UTF-8",
    "hub_repo_not_found": "preload_from_hub names a repository that is not there for the Space's owner",
    "hub_revision_not_found": "preload_from_hub names a commit that its repository does not have",
    "hub_file_not_found": "preload_from_hub names a file that its repository does not have",
    "hub_bad_path": "a repository of preload_from_hub has a file that cannot be kept under its name",
    "hub_too_large": "preload_from_hub asks for more than may be fetched",
    "hub_damaged": "a file of preload_from_hub came in another size or with another checksum than announced",
    "hub_unreachable": "the hub that preload_from_hub asks does not answer",
}
"""Every reason a build or a start can fail for."""

LIMITS: dict[str, tuple[str, str, str]] = {
    "seconds": (
        "build_timeout",
        "The build took longer than the {limit:.0f} seconds it may take.",
        "Ask for fewer packages, or for releases that come as ready wheels.",
    ),
    "memory": (
        "out_of_memory",
        "The build used more than the {mib:.0f} MiB of memory it may use.",
        "Choose packages that come as ready wheels: compiling them takes most of the memory.",
    ),
    "processes": (
        "too_many_processes",
        "The build started more than the {limit:.0f} processes it may start.",
        "A package's setup starts processes without end; choose another release.",
    ),
    "disk": (
        "disk_limit",
        "The build wrote more than the {mib:.0f} MiB it may write.",
        "Ask for fewer or smaller packages (for example the CPU build of torch).",
    ),
    "free_disk": (
        "disk_full",
        "The disk of this machine is nearly full: less than {mib:.0f} MiB would be left.",
        "Free some space on the machine, then build again.",
    ),
}
"""Limit -> reason, cause and fix."""

WRONG_PORT_FIX: dict[str, str] = {
    "gradio": "Call launch() without server_port: the port is told in GRADIO_SERVER_PORT.",
    "streamlit": "Remove server.port from .streamlit/config.toml and from the code.",
    "dash": "Call app.run() without port: it is told in PORT.",
}
BIND_FIX: dict[str, str] = {
    "gradio": 'Call launch() without server_name, or with server_name="0.0.0.0".',
    "streamlit": "Remove server.address from .streamlit/config.toml.",
    "dash": 'Call app.run() without host, or with host="0.0.0.0".',
}
NOT_LISTENING_FIX: dict[str, str] = {
    "gradio": "The script must end with demo.launch().",
    "dash": "The script must end with app.run().",
}
