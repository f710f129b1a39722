"""Betons: FFCV's file format with a manifest beside it. Written whole or not at all.

Comes in: a source of labelled images. Goes out: ``FILE.beton``, which a stock FFCV ``Loader``
reads, and ``FILE.beton.json``, its manifest; and the `Beton` and `Domain` that read them.
"""

from xmix_data.beton.classes import ClassList, class_list, ids_in_domain
from xmix_data.beton.convert import write_beton
from xmix_data.beton.domain import BetonLike, Domain, DomainLike, open_domain
from xmix_data.beton.manifest import manifest_path, parse_manifest, shard_name, shards_of
from xmix_data.beton.reader import Beton
from xmix_data.beton.source import open_images

__all__ = [
    "Beton",
    "BetonLike",
    "ClassList",
    "Domain",
    "DomainLike",
    "class_list",
    "ids_in_domain",
    "manifest_path",
    "open_domain",
    "open_images",
    "parse_manifest",
    "shard_name",
    "shards_of",
    "write_beton",
]
