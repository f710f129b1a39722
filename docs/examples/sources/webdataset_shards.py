"""WebDataset shards, tar files with ``NAME.jpg`` and ``NAME.cls``, as a beton.

python webdataset_shards.py out.beton shard-000000.tar shard-000001.tar ...
"""

import sys
import tarfile

from xmix_data import write_beton


class Shards:
    """A map-style dataset: where each image lies in which tar file is read once."""

    def __init__(self, paths):
        self.places, self.targets = [], []
        for path in paths:
            images, labels = {}, {}
            with tarfile.open(path) as archive:
                for member in archive:
                    name, _, kind = member.name.rpartition(".")
                    if kind in ("jpg", "jpeg", "png"):
                        images[name] = (path, member.offset_data, member.size)
                    elif kind == "cls":
                        labels[name] = int(archive.extractfile(member).read())
            self.places += [images[name] for name in images]
            self.targets += [labels[name] for name in images]

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        path, offset, size = self.places[index]
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.read(size), self.targets[index]


if __name__ == "__main__":
    out, *shards = sys.argv[1:]
    print(write_beton(Shards(shards), out))
