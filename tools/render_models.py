"""models/README.md from the JSON files beside the models.

python -m tools.render_models
"""

from __future__ import annotations

import json
from pathlib import Path

import click

HEAD = """# Models

Trained by this project's own tools, for the README's example and for tests. The input is N x 3 x 32 x 32 float32: images scaled
to 0..1, then mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225. This page is made by
`python -m tools.render_models`. The network with `dev` in its name is for choosing hyper-parameters: it has not seen the 5,000
training images on which it is tested (`python -m tools.hold_out data/cifar10.npz data/cifar10-dev.npz`). Networks with a
budget in their names are what the tool has made of others here (`tools/adopt_model.py`); `batude-onnx validate
models/resnet20-cifar10.onnx FILE --data data/cifar10.npz` scores them.
"""


def render(folder: Path) -> str:
    """The page for all `*.json` in `folder` that describe a model there."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text())
        rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items() if name not in ("file", "commands")]
        commands = "\n".join(facts.get("commands", []))
        parts.append(f"## {facts['file']}\n\n| | |\n|---|---|\n" + "\n".join(rows) + f"\n\n```\n{commands}\n```\n")
    return "\n".join(parts)


@click.command()
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("models"))
def main(folder: Path) -> None:
    """Write README.md."""
    (folder / "README.md").write_text(render(folder))


if __name__ == "__main__":
    main()
