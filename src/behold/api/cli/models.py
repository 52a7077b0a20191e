"""`behold models`: what can be used, and what is already here."""

from __future__ import annotations

from behold.api.cli.options import DebugOption, JsonOption
from behold.api.cli.printing import print_json
from behold.api.cli.terminal import reported, write


def models(*, json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the families of models, and those that are bundled or cached on this machine."""
    with reported(debug=debug):
        from behold.api.catalog import catalog

        found = catalog()
        if json:
            print_json(found.record())
        else:
            write(found.text())
