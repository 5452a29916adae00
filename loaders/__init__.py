"""What turns packed bytes into batches of views."""

from loaders.build import BackendName, build_loader, build_paired_loader
from loaders.packs import open_pack

__all__ = ["BackendName", "build_loader", "build_paired_loader", "open_pack"]
