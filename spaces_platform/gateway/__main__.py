"""`python -m spaces_platform.gateway --config FILE.json`: run one gateway until SIGTERM.

Exit status: 0 after an orderly end, 2 for a configuration that cannot be used, 1 for an address that cannot be bound.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from spaces_platform.errors import PlatformError
from spaces_platform.gateway.config import GatewayConfig, load
from spaces_platform.gateway.server import Gateway


async def _serve(config: GatewayConfig) -> None:
    await Gateway(config).run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="spaces_platform.gateway", description="Serve apps by host name.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file; see GatewayConfig for its keys")
    try:
        config = load(parser.parse_args().config)
    except PlatformError as error:
        print(error.message, file=sys.stderr)
        return 2
    if sys.platform == "win32":
        factory = None
    else:
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(config))
    except OSError as error:
        print(f"The gateway cannot listen: {error}. Is another one running?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
