"""Images that a table lists, with the columns ``file`` and ``label``, as a beton.

python csv_table.py images.csv out.beton
"""

import csv
import sys
from pathlib import Path

from xmix_data import write_beton


class Table:
    """A map-style dataset; files are relative to the table, and stay undecoded here."""

    def __init__(self, path):
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        self.folder = Path(path).parent
        self.files = [row["file"] for row in rows]
        self.classes = sorted({row["label"] for row in rows})
        self.targets = [self.classes.index(row["label"]) for row in rows]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return (self.folder / self.files[index]).read_bytes(), self.targets[index]


if __name__ == "__main__":
    table, out = sys.argv[1:]
    print(write_beton(Table(table), out))
