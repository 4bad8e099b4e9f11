"""Signing in and out, access tokens, and the door to private apps."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import Response

from spaces_platform.accounts import SESSION_SECONDS, TOKEN_ROLES, Actor
from spaces_platform.errors import Forbidden, Invalid, PlatformError, RepoNotFound, Unauthenticated
from spaces_platform.web.site import Call, Site, local_path, redirect

DAY = 86400
EXPIRIES = (30, 90, 365, 0)
"""Days a token may be made for; 0: without end."""


class SignInPages:
    def __init__(self, site: Site) -> None:
        self.site, self.platform = site, site.platform

    def add(self) -> None:
        self.site.get("/login", self.sign_in)
        self.site.post("/login", self.open)
        self.site.post("/logout", self.close)
        self.site.get("/auth/app", self.app_door)
        self.site.get("/settings/tokens", self.tokens)
        self.site.post("/settings/tokens", self.make_token)
        self.site.post("/settings/tokens/{id}/revoke", self.revoke_token)
        self.site.post("/settings/password", self.password)

    # --- sessions ----------------------------------------------------------------------------------------------------
    def sign_in(self, call: Call) -> Response:
        following = local_path(call.query("next") or "/")
        if not call.actor.is_anonymous:
            return redirect(following)
        return self.site.page(call, "login.html", following=following, error="", name="")

    def open(self, call: Call) -> Response:
        following = local_path(call.form.get("next", "/"))
        try:
            actor = self._authenticate(call)
        except PlatformError as exc:
            return self.site.page(
                call, "login.html", status=exc.http_status, following=following, error=exc.message,
                name=call.form.get("name", "")[:100],
            )  # fmt: skip
        if call.visitor.session:
            self.platform.accounts.end_session(call.visitor.session)
        session = self.platform.accounts.open_session(actor)
        response = redirect(following)
        self.site.cookie(call.request, response, session, SESSION_SECONDS)
        return response

    def _authenticate(self, call: Call) -> Actor:
        """Raises Unauthenticated, Forbidden."""
        token = call.form.get("token", "").strip()
        if not token:
            return self.platform.accounts.sign_in(call.form.get("name", "").strip(), call.form.get("password", ""))
        try:
            actor = self.platform.accounts.actor_of_token(token)
        except Unauthenticated as exc:
            raise Unauthenticated("This token is unknown, revoked or expired.") from exc
        if actor.token_role != "write":
            # A session may do all that its user may: less must not become more by signing in.
            raise Forbidden("Signing in takes a token with the role write; this one may do less.")
        return actor

    def close(self, call: Call) -> Response:
        if call.visitor.session:
            self.platform.accounts.end_session(call.visitor.session)
        response = redirect("/?done=signed-out")
        self.site.cookie(call.request, response, "", 0)
        return response

    def app_door(self, call: Call) -> Response:
        """To an app's own host, with a one-time code where the app is private. Raises RepoNotFound.

        By `space` from a page of ours, by `host` from the gateway, which does not say whether there is such an app.
        """
        owner, _, name = call.query("space").partition("/")
        following = local_path(call.query("next") or "/")
        try:
            if call.query("host"):
                space = self.platform.directory.by_host(call.query("host"), call.actor)
            else:
                space = self.platform.directory.find(owner, name, call.actor)
        except RepoNotFound:
            if call.actor.is_anonymous:
                raise Unauthenticated("Sign in to open this app.") from None
            raise
        host = self.platform.directory.hosts(space.id or 0).get("primary")
        if host is None:
            raise RepoNotFound()
        app = self.platform.settings.app_url(host)
        if space.visibility == "public":
            return redirect(app + following.lstrip("/"))
        code = self.platform.accounts.open_session(call.actor, space_id=space.id, kind="code")
        return redirect(f"{app}.spaces/auth?code={quote(code, safe='')}&next={quote(following, safe='')}")

    # --- tokens and password -----------------------------------------------------------------------------------------
    def tokens(self, call: Call) -> Response:
        return self._tokens(call)

    def make_token(self, call: Call) -> Response:
        """Shows the new token once: it is in this answer and nowhere else."""
        accounts, form = self.platform.accounts, call.form
        try:
            role, days = form.get("role", ""), form.get("days", "")
            if role not in TOKEN_ROLES or role == "fineGrained":
                raise Invalid("Choose the role read or write.")
            if days not in {str(d) for d in EXPIRIES}:
                raise Invalid("Choose one of the listed times.")
            expires_at = accounts.now() + int(days) * DAY if days != "0" else None
            name = form.get("name", "").strip()
            token = accounts.create_token(self._me(call), name, role=role, expires_at=expires_at, by=call.actor)
        except Unauthenticated:
            raise
        except PlatformError as exc:
            return self._tokens(call, error=exc.message, status=exc.http_status)
        response = self._tokens(call, made=token)
        response.headers["Cache-Control"] = "no-store"
        return response

    def revoke_token(self, call: Call) -> Response:
        number = call.path("id")
        if not number.isascii() or not number.isdigit() or len(number) > 15:
            raise Invalid("That is not a token's number.")
        self.platform.accounts.revoke_token(self._me(call), int(number), by=call.actor)
        return redirect("/settings/tokens?done=revoked")

    def password(self, call: Call) -> Response:
        me = self._me(call)
        accounts = self.platform.accounts
        try:
            if accounts.find(call.actor.name).password_hash:
                accounts.sign_in(call.actor.name, call.form.get("current", ""))
            accounts.set_password(me, call.form.get("password", ""))
        except PlatformError as exc:
            message = "The current password is wrong." if isinstance(exc, Unauthenticated) else exc.message
            return self._tokens(call, error=message, status=exc.http_status)
        return redirect("/settings/tokens?done=password")

    def _tokens(self, call: Call, *, made: str = "", error: str = "", status: int = 200) -> Response:
        me = self._me(call)
        has_password = bool(self.platform.accounts.find(call.actor.name).password_hash)
        return self.site.page(
            call, "tokens.html", status=status, tokens=self.platform.accounts.tokens(me), made=made, error=error,
            expiries=EXPIRIES, has_password=has_password,
        )  # fmt: skip

    def _me(self, call: Call) -> int:
        if call.actor.id is None:
            raise Unauthenticated("Sign in first.")
        return call.actor.id
