"""The group that all commands belong to."""

from __future__ import annotations

import click

from batude_onnx import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batude-onnx")
def main() -> None:
    """Make a trained CNN smaller: an ONNX file and a budget in, a proven ONNX file out."""
