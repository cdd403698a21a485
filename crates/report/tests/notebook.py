"""Validates a notebook against nbformat's schema and executes it.

    python notebook.py FILE.ipynb"""

import sys
from pathlib import Path

import nbclient
import nbformat

path = Path(sys.argv[1])
notebook = nbformat.read(path, as_version=4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
assert len(pictures) >= 3, f"{len(pictures)} pictures"
print(f"{path.name}: {len(notebook.cells)} cells executed, {len(pictures)} pictures")
