#!/usr/bin/env python3
"""How the cost grows: with the number of documents of one length (it should be linear), and with the length of one document (linear but
for attention, which is quadratic).

    scaling.py --model DIR [--bench build/bench] [--counts 1,10,100,1000,10000] [--lengths 256,512,...] [options of bench]"""

import argparse
import csv
import json
import pathlib
import subprocess
import tempfile

TEXT = pathlib.Path(__file__).parent / "workloads" / "rag50x256.json"


def measure(args, options, workload):
    with tempfile.TemporaryDirectory() as folder:
        path, out = pathlib.Path(folder) / "workload.json", pathlib.Path(folder) / "out.csv"
        path.write_text(json.dumps(workload))
        subprocess.run([args.bench, "--model", args.model, "--csv", out, *options, path], stdout=subprocess.DEVNULL, check=True)
        return {k: float(v) if v.replace(".", "", 1).isdigit() else v for k, v in next(csv.DictReader(out.open())).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/bench")
    parser.add_argument("--model", required=True)
    parser.add_argument("--counts", default="1,10,100,1000,10000")
    parser.add_argument("--lengths", default="256,512,1024,2048,4096,8000")
    args, options = parser.parse_known_args()
    words = " ".join(json.loads(TEXT.read_text())["documents"]).split()
    print(f"{'documents':>10} {'tokens':>9} {'seconds':>9} {'us/token':>9}")
    for n in (int(c) for c in args.counts.split(",")):
        documents = [f"{i} " + " ".join(words[(80 * i) % 4000 :][:80]) for i in range(n)]
        r = measure(args, options, {"query": "how does the cost grow", "documents": documents})
        print(f"{n:10} {r['tokens_computed']:9.0f} {r['seconds']:9.3f} {1e6 * r['seconds'] / r['tokens_computed']:9.1f}", flush=True)
    print(f"\n{'tokens':>10} {'seconds':>9} {'us/token':>9} {'attention us/token':>19} {'the same over tokens':>21} {'rest us/token':>14}")
    for n in (int(c) for c in args.lengths.split(",")):
        r = measure(args, options, {"query": "how does the cost grow", "documents": [" ".join((words * 3)[: int(n * 0.72)])]})
        tokens, attention = r["tokens_computed"], r["attention_s"]
        each = 1e6 * attention / tokens
        print(f"{tokens:10.0f} {r['seconds']:9.3f} {1e6 * r['seconds'] / tokens:9.1f} {each:19.2f} {each / tokens:21.5f} {1e6 * (r['seconds'] - attention) / tokens:14.1f}", flush=True)


if __name__ == "__main__":
    main()
