"""Convert a data set on a Ray cluster: a task for each shard, repeated where a worker dies.

    python convert_ray.py imagenet/train s3://betons/source.beton --shards 64 --cpus 8

What else is given goes to `xmix convert`. Shards that are there already are left alone: after an
error run the same command again.
"""

import argparse

import ray

from xmix_data.beton import shards_of
from xmix_data.cli import main as xmix


def convert(shard: str, arguments: list[str]) -> str:
    """Write one shard; whole, or not at all."""
    if xmix(["convert", *arguments, "--shard", shard, "--overwrite"]):
        raise RuntimeError(f"shard {shard} failed; see what its worker said")
    return shard


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("src")
    parser.add_argument("out")
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--cpus", type=int, default=1, help="cores of a task")
    options, more = parser.parse_known_args()
    arguments = [options.src, options.out, "--workers", str(options.cpus), *more]
    there = shards_of(options.out).get(options.shards, {})
    ray.init(ignore_reinit_error=True)
    task = ray.remote(num_cpus=options.cpus, max_retries=5)(convert)
    waiting = [
        task.remote(f"{index}/{options.shards}", arguments)
        for index in range(options.shards)
        if index not in there
    ]
    while waiting:
        done, waiting = ray.wait(waiting)
        print(f"shard {ray.get(done[0])} is written", flush=True)
