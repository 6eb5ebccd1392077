#!/usr/bin/env python3
"""Draws what `make bench` found: plot.py FILE.csv... writes FILE.png beside each: the latest run of every workload, its time by stage beside
the time that the library's products alone would take."""

import csv
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STAGES = ["tokenize", "embed", "norm", "qkv", "attention", "o", "mlp", "head", "idle", "other"]


def main():
    for path in map(pathlib.Path, sys.argv[1:]):
        latest = {(r["workload"], r["model"], r["dtype"], r["threads"]): r for r in csv.DictReader(path.open())}
        if not latest:
            sys.exit(f"plot.py: {path}: no lines")
        rows = sorted(latest.values(), key=lambda r: (r["model"], r["dtype"], r["workload"]))
        figure, axes = plt.subplots(figsize=(9, 1.5 + 0.55 * len(rows)), layout="constrained")
        for y, row in enumerate(rows):
            left, colours = 0.0, iter(plt.colormaps["tab10"].colors)
            for stage in STAGES:
                seconds, colour = max(0.0, float(row[f"{stage}_s"])), next(colours)
                axes.barh(y, seconds, left=left, color=colour, height=0.7, label=stage if y == 0 else None)
                left += seconds
            limit = float(row["of_gemm"]) * float(row["seconds"])
            axes.plot([limit, limit], [y - 0.45, y + 0.45], color="black", label="products alone" if y == 0 else None)
            axes.text(left, y, f" {float(row['documents']) / float(row['seconds']):.1f} documents/s", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [f"{r['workload'].removesuffix('.json')}\n{r['model']}, {r['dtype']}" for r in rows], fontsize=8)
        axes.set_xlim(right=1.18 * max(float(r["seconds"]) for r in rows))
        axes.set_xlabel("seconds")
        axes.set_title(f"{rows[-1]['device']}, {rows[-1]['time'][:10]}", fontsize=10)
        axes.invert_yaxis()
        figure.legend(loc="outside right upper", fontsize=8)
        figure.savefig(path.with_suffix(".png"), dpi=110)
        print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
