from pathlib import Path

import matplotlib.pyplot as plt

DATA = Path("DATA_FOLDER")
try:
    import polars

    frame = lambda name: polars.read_parquet(DATA / f"{name}.parquet")
    rows = lambda table: table.to_dicts()
except ImportError:
    import pandas

    frame = lambda name: pandas.read_parquet(DATA / f"{name}.parquet")
    rows = lambda table: table.astype(object).where(table.notna(), None).to_dict("records")

runs, points, tensors = frame("runs"), frame("points"), frame("tensors")
labels = {r["run"]: r["label"] or r["run"] for r in rows(runs)}
# Okabe and Ito's palette, distinguishable without colour vision.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]
points
