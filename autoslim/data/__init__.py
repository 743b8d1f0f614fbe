"""Data sets: reading them, splitting them, and turning them into augmented batches."""

from autoslim.data.images import FileImages, ImageSet
from autoslim.data.loader import Loader
from autoslim.data.sources import Data, load_data
from autoslim.data.split import channel_statistics, split

__all__ = ["Data", "FileImages", "ImageSet", "Loader", "channel_statistics", "load_data", "split"]
