"""The notebook as a page: run from its first cell to its last, with what it prints and draws today.

An error in a cell ends the build. Network access is not needed; the kernel is the python that builds the site.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from traitlets.config import Config

SECONDS = 300  # for one cell
_HEAD = "This page is [quickstart.ipynb](quickstart.ipynb), run when the site was built.\n\n"


def run(path: Path) -> Any:
    """The notebook at ``path`` with the outputs of running it in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        kernel = {"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}}  # opens no port
        resources = {"metadata": {"path": folder}}
        options: dict[str, Any] = {"timeout": SECONDS, "coalesce_streams": True, "resources": resources}
        nbclient.NotebookClient(notebook, config=Config(kernel), kernel_name="python3", **options).execute()
    return notebook


def _output(output: Any, name: str, files: dict[str, str | bytes]) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    if "image/png" in output.data:
        files[name] = base64.b64decode(output.data["image/png"])
        return f"![output of the cell above]({name})"
    return f"```text\n{output.data.get('text/plain', '').rstrip()}\n```"


def rendered(path: Path) -> dict[str, str | bytes]:
    """The page and its pictures: where each is in the site, and its content."""
    files: dict[str, str | bytes] = {}
    parts: list[str] = []
    for number, cell in enumerate(run(path).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source.rstrip()}\n```")
        outputs = [
            _output(output, f"quickstart_notebook_{number}_{index}.png", files)
            for index, output in enumerate(cell.outputs)
        ]
        parts += filter(None, outputs)
    title, *rest = parts
    files["quickstart_notebook.md"] = "\n\n".join([title, _HEAD, *rest]) + "\n"
    return files
