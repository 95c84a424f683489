"""What keeps the pages of other sites away from a server that a browser may use without showing a secret of the page's.

Without keys the only lock of a server on loopback is that others cannot reach it. A browser on this machine can: it
sends the requests of any page, and a site whose name was just made to mean 127.0.0.1 (DNS rebinding) may even read the
replies. With keys a browser that was given one as a password adds it to the requests of any page, too. All of them tell
of themselves: in the name of the host, and in the origin.
"""

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from membuilder.serving.loopback import is_loopback
from membuilder.serving.problems import problem


class OwnPagesOnly:
    """An app in front of another that refuses what a browser sends for the page of another site.

    Without keys also what is sent to another name than loopback's. A key that a program shows is a secret that no other
    page has, so whatever brings one is let through.
    """

    def __init__(self, app: ASGIApp, has_keys: bool):
        self._app, self._has_keys = app, has_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reply := self._refusal(Headers(scope=scope), scope["scheme"])) is not None:
            return await reply(scope, receive, send)
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, scheme: str) -> JSONResponse | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if self._has_keys:
            by_password = headers.get("authorization", "").lower().startswith("basic ")
            # whoever ends TLS in front of this server may keep its own scheme to itself
            is_other = by_password and any(urlsplit(origin).netloc not in hosts for origin in origins)
        elif len(hosts) != 1 or not is_loopback(_name_of(f"//{hosts[0]}")):
            detail = "Without keys this server answers to localhost alone, not to another name of this machine."
            return problem(HTTPStatus.MISDIRECTED_REQUEST, "other-host", detail, {"Connection": "close"})
        else:
            is_other = any(origin != f"{scheme}://{hosts[0]}" for origin in origins)
        detail = "This server answers no page of another site."
        return problem(HTTPStatus.FORBIDDEN, "other-site", detail, {"Connection": "close"}) if is_other else None


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as half an IPv6 address
        return ""
