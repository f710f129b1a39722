"""The commands of `xmix`, a file each: options in, an `Answer` out."""
