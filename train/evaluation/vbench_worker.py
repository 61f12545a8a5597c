"""One figure of VBench for a folder of videos, run by the Python of an environment that has the package `vbench`:

    VBENCH_CACHE_DIR=WEIGHTS python vbench_worker.py VIDEOS OUT DIMENSION DEVICE

Imports nothing of ours. Writes OUT/result.json: the mean, and a figure for each video by its name.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    videos, out, dimension, device = sys.argv[1:]
    sys.path.pop(0)  # this folder, whose modules are not for that environment
    from vbench import VBench

    bench = VBench(device, None, out)
    bench.evaluate(
        videos_path=videos, name="bench", dimension_list=[dimension], local=True, read_frame=False, mode="custom_input"
    )
    mean, rows = json.loads((Path(out) / "bench_eval_results.json").read_text())[dimension]
    each = {Path(row["video_path"]).name: float(row["video_results"]) for row in rows}
    (Path(out) / "result.json").write_text(json.dumps({"mean": float(mean), "videos": each}))


if __name__ == "__main__":
    main()
