"""What a registry answers when it does not do what it was asked (distribution specification, "Error Codes")."""

import json
from collections.abc import Mapping

from aiohttp import web


class Refused(Exception):
    """An answer other than the one that was hoped for: its status, the specification's code for it, and why in words."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}

    def response(self) -> web.Response:
        body = json.dumps({"errors": [{"code": self.code, "message": str(self)}]}).encode()
        return web.Response(status=self.status, body=body, content_type="application/json", headers=self.headers)
