"""What keeps the pages of other sites away from a server on loopback, whose only lock is that others cannot reach it.

A browser on this machine can. It sends the requests of any page, and a site whose name was just made to mean 127.0.0.1
(DNS rebinding) may even read the replies. Both tell of themselves: in the name of the host, and in the origin.
"""

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from membuilder.serving.loopback import is_loopback
from membuilder.serving.problems import problem


class OwnPagesOnly:
    """An app in front of another that refuses what is sent to another name than loopback's, or by another site's page.

    It stands where there are no keys. A key is a secret that no other page has, so with keys it is not needed.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            hosts, origins = headers.getlist("host"), headers.getlist("origin")
            reply = None
            if len(hosts) != 1 or not is_loopback(_name_of(f"//{hosts[0]}")):
                detail = "Without keys this server answers to localhost alone, not to another name of this machine."
                reply = problem(HTTPStatus.MISDIRECTED_REQUEST, "other-host", detail, {"Connection": "close"})
            elif any(origin != f"{scope['scheme']}://{hosts[0]}" for origin in origins):
                detail = "Without keys this server answers no page of another site."
                reply = problem(HTTPStatus.FORBIDDEN, "other-site", detail, {"Connection": "close"})
            if reply is not None:
                return await reply(scope, receive, send)
        await self._app(scope, receive, send)


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as half an IPv6 address
        return ""
