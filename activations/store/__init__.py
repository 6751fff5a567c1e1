"""The HDF5 store of activations: its layout on disk, its writer, its reader, and joining stores."""

from activations.store.layout import KIND
from activations.store.merge import merge_stores
from activations.store.reader import ActivationStore
from activations.store.writer import StoreWriter

__all__ = ["KIND", "ActivationStore", "StoreWriter", "merge_stores"]
