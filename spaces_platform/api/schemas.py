"""The values of requests and answers, for validation and for the OpenAPI document.

Owns names, types and bounds. Does not own meaning: use cases check what needs the database. Unknown fields of requests
are ignored, since the Hub's clients send more than a self-hosted platform knows.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(max_length=200)]
Short = Annotated[str, Field(max_length=2000)]
Value = Annotated[str, Field(max_length=1 << 18)]
Count = Annotated[int, Field(ge=-(2**53), le=2**53)]


class Open(BaseModel):
    """An answer that may carry more than is listed."""

    model_config = ConfigDict(extra="allow")


class Failure(Open):
    """Every refusal."""

    error: str


# --- requests -----------------------------------------------------------------------------------------------
class SettingIn(BaseModel):
    key: Name
    value: Value = ""
    description: Short | None = None


class KeyIn(BaseModel):
    key: Name


class FileIn(BaseModel):
    path: Annotated[str, Field(max_length=4096)]
    content: str
    encoding: str = "utf-8"


class CreateIn(BaseModel):
    """hub-api 2.1."""

    name: Name
    organization: Name | None = None
    type: str = "model"
    sdk: str | None = None
    visibility: str | None = None
    private: bool | None = None
    hardware: str | None = None
    sleepTimeSeconds: Count | None = None
    storageTier: Name | None = None
    short_description: Short | None = None
    secrets: Annotated[list[SettingIn], Field(max_length=200)] = []
    variables: Annotated[list[SettingIn], Field(max_length=200)] = []
    files: Annotated[list[FileIn], Field(max_length=200)] = []
    init: bool = True
    """Ours: false leaves the repository without a first commit, so that any history can be pushed."""


class DeleteIn(BaseModel):
    name: Name
    organization: Name | None = None
    type: str = "model"


class MoveIn(BaseModel):
    fromRepo: Name
    toRepo: Name
    type: str = "model"


class SettingsIn(BaseModel):
    visibility: str | None = None
    private: bool | None = None


class HardwareIn(BaseModel):
    flavor: Name
    sleepTimeSeconds: Count | None = None


class StorageIn(BaseModel):
    tier: Name
    """`small` | `medium` | `large`."""


class QuotaIn(BaseModel):
    owner: Name
    gpus: Count | None
    """GPUs at once; -1: no limit; null: the platform's default."""


class SleepTimeIn(BaseModel):
    seconds: Count


class YamlIn(BaseModel):
    content: str = ""
    repoType: str = "model"


class PreuploadFile(BaseModel):
    path: Annotated[str, Field(max_length=4096)]
    size: Count = 0
    sample: Annotated[str, Field(max_length=4096)] = ""


class PreuploadIn(BaseModel):
    files: Annotated[list[PreuploadFile], Field(max_length=1000)]
    gitIgnore: Annotated[str, Field(max_length=1 << 18)] | None = None


class BranchIn(BaseModel):
    startingPoint: Name | None = None


class TagIn(BaseModel):
    tag: Name
    message: Value | None = None


class TokenIn(BaseModel):
    name: Name
    role: str = "write"
    expiresIn: Annotated[int, Field(ge=1, le=10 * 366 * 86400)] | None = None
    """Seconds; absent: never."""
    scopes: Annotated[list[dict[str, Any]], Field(max_length=100)] = []


class UserIn(BaseModel):
    name: Name
    password: Short | None = None
    email: Name | None = None
    fullname: Name | None = None
    admin: bool = False


class DomainIn(BaseModel):
    domain: Annotated[str, Field(min_length=1, max_length=260)]


class PasswordIn(BaseModel):
    password: Short
    current: Short | None = None


class OrgIn(BaseModel):
    name: Name
    fullname: Name | None = None


class RoleIn(BaseModel):
    role: str | None = None
    """`read` | `contributor` | `write` | `admin`; null takes the role away."""


class LinkIn(BaseModel):
    next: Short = "/"


class SessionIn(BaseModel):
    """Either name and password, or a token."""

    name: Name | None = None
    password: Short | None = None
    token: Name | None = None


# --- answers ------------------------------------------------------------------------------------------------
class Rotated(BaseModel):
    resealed: int
    """Secrets that were sealed anew."""


class Done(Open):
    """The request was carried out."""


class Created(BaseModel):
    url: str
    name: str
    id: str


class CommitDone(BaseModel):
    success: bool
    commitOid: str
    commitUrl: str
    hookOutput: str = ""


class Runtime(Open):
    """hub-api 4.1."""

    stage: str
    hardware: dict[str, str | None]
    sha: str | None
    errorMessage: str | None
    gcTimeout: int | None
    storage: str | None


class Info(Open):
    """hub-api 2.5; which fields are there depends on `expand`."""

    id: str


class YamlOut(BaseModel):
    errors: list[dict[str, str]]
    warnings: list[dict[str, str]]


class HostOut(BaseModel):
    host: str
    subdomain: str


class ProgressOut(BaseModel):
    phase: str
    text: str
    since: float


class BuildOut(BaseModel):
    id: int
    commit: str
    status: str
    phase: str
    phaseText: str
    phaseAt: float
    position: int | None
    createdAt: float
    startedAt: float | None
    endedAt: float | None
    reason: str
    message: str
    evidence: list[str]


class DeploymentOut(BaseModel):
    id: int
    commit: str
    status: str
    live: bool
    endpoint: str | None
    isolation: str
    reason: str
    message: str
    exitCode: int | None
    createdAt: float
    readyAt: float | None
    routedAt: float | None
    endedAt: float | None


class TrafficOut(BaseModel):
    inFlight: int
    attached: int
    lastActiveAt: float | None


class SpaceStatus(BaseModel):
    id: int
    name: str
    stage: str
    reason: str
    message: str
    evidence: list[str]
    sdk: str | None
    title: str
    emoji: str
    visibility: str
    head: str | None
    servingCommit: str | None
    reachable: bool
    """Whether every gateway leads visitors to what serves."""
    urls: dict[str, str | None]
    page: str
    gitUrl: str
    hardware: str
    storage: str | None
    sleepAfter: int
    progress: ProgressOut | None
    build: BuildOut | None
    deployment: DeploymentOut | None
    traffic: TrafficOut
    access: str


class LineOut(BaseModel):
    n: int
    at: str
    text: str


class LogPage(BaseModel):
    lines: list[LineOut]
    done: bool


class ProofOut(BaseModel):
    """A DNS record that shows whose a domain is."""

    type: str
    name: str
    value: str


class DomainOut(BaseModel):
    domain: str
    shown: str
    status: str
    url: str
    proof: ProofOut
    pointsTo: str | None
    problem: str
    createdAt: float
    verifiedAt: float | None
    checkedAt: float | None


class VolumeOut(BaseModel):
    tier: str | None
    """As asked for; null: the platform's default."""
    mountPath: str
    wantedBytes: int
    """What it is to have at the next start; 0: there will be none."""
    sizeBytes: int | None
    """What it has; null before the first start."""
    usedBytes: int
    """What it takes of the machine's disk, and its snapshots beside it."""
    snapshotBytes: int
    removing: bool
    """It goes as soon as its app has ended."""
    tiers: dict[str, int]
    """What may be asked for here: bytes by tier."""


class SnapshotOut(BaseModel):
    name: str
    takenAt: float


class EventOut(BaseModel):
    id: int
    at: float
    kind: str
    actor: str
    data: dict[str, Any]


class TokenMade(BaseModel):
    token: str
    id: int


class TokenOut(BaseModel):
    id: int
    name: str
    role: str
    last4: str
    scopes: list[dict[str, Any]]
    createdAt: float
    expiresAt: float | None


class AccountOut(BaseModel):
    name: str
    type: str


class MemberOut(BaseModel):
    name: str
    role: str


class QuotaOut(BaseModel):
    owner: str
    gpus: int
    """GPUs at once; -1: no limit."""
    used: int
    isDefault: bool


class QuotasOut(BaseModel):
    default: int
    """Of owners without a quota of their own."""
    quotas: list[QuotaOut]


class GpuOut(BaseModel):
    id: str
    model: str
    space: str | None
    """Who has it."""
    deployment: int | None
    since: float | None


class UrlOut(BaseModel):
    url: str


class PlatformInfo(Open):
    version: str
    url: str
    appsDomain: str
    isolation: dict[str, str]
    loopbackAddresses: bool
    maxPushBytes: int
