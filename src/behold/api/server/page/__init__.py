"""The chat page at `/`: a few static files that speak to the API like any other client."""

from behold.api.server.page.page import mount

__all__ = ["mount"]
