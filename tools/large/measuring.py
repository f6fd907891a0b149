"""How much memory a command takes: in a process of its own, whose peak the system knows.

Two figures: the peak of all resident pages (VmHWM in /proc), which counts pages of mapped files that the system could drop at
any time, and of those that are the process's own, sampled twenty times a second. Not `getrusage`, which begins with the peak
of the process that a command was started from.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from batude_onnx.validation.sessions import runtime_version
from tools.tables.running import hardware, versions

CHILD = (
    "import sys\n"
    "from batude_onnx.cli import main\n"
    "from batude_onnx.validation.memory import peak_so_far\n"
    "try:\n"
    "    main(sys.argv[1:])\n"
    "finally:\n"
    "    print(peak_so_far() // 2**20, file=sys.stderr)\n"
)
EVERY_S = 0.05


def measured(arguments: list[str]) -> dict[str, object]:
    """`batude-onnx` with these arguments; raises RuntimeError with what it said where it fails."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own: list[int] = [0]
    sampler = threading.Thread(target=_sample, args=(child, own))
    sampler.start()
    said, errors = child.communicate()
    sampler.join()
    if child.returncode:
        raise RuntimeError(f"batude-onnx {' '.join(arguments)}: {errors.strip() or said.strip()}")
    return {
        "arguments": [Path(argument).name for argument in arguments],
        "peak_mb": int(errors.strip().splitlines()[-1]),
        "own_peak_mb": max(own),
        "seconds": round(time.monotonic() - began, 1),
    }


def _sample(child: subprocess.Popen[str], own: list[int]) -> None:
    """Anonymous memory of `child` in MB, as long as it runs."""
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        own += [int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon")]
        time.sleep(EVERY_S)


def surroundings() -> dict[str, object]:
    """Hardware and versions."""
    return {"hardware": hardware("cpu"), "versions": {**versions(), "onnxruntime": runtime_version()}}
