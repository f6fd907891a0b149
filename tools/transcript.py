"""Run the commands that README.md shows, and put what they print under them.

    python -m tools.transcript README.md

A shown command stands between two marks, so that nothing in the transcript is typed by hand:

    <!-- transcript: make compress -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

MARK = re.compile(r"(<!-- transcript: (?P<command>.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def run(command: str) -> str:
    """What the command prints, as a fenced block that begins with the command itself. Raises ClickException if it fails."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{command}: exit code {done.returncode}\n{done.stderr}")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "```console\n$ " + command + "\n" + "\n".join(lines).strip("\n") + "\n```\n"


@click.command()
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=Path("README.md"))
@click.option("--only", default="", help="Only commands that hold this text.")
def main(page: Path, only: str) -> None:
    """Renew the transcripts in PAGE."""

    def renew(match: re.Match[str]) -> str:
        if only not in match["command"]:
            return match[0]
        click.echo(f"running: {match['command']}", err=True)
        return match[1] + run(match["command"]) + match[3]

    text = page.read_text()
    fresh = MARK.sub(renew, text)
    page.write_text(fresh)
    click.echo(f"{page}: {len(MARK.findall(text))} transcripts, {'changed' if fresh != text else 'unchanged'}")


if __name__ == "__main__":
    sys.exit(main())
