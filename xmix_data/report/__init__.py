"""A pairing as one web page: pictures, similarities, images to draw from, mixed samples."""

from xmix_data.report.page import write_report

__all__ = ["write_report"]
