"""Sparse autoencoders: training from activations, formats, loading, and how well they explain a model."""

from typing import TYPE_CHECKING

from activations.lazy import lazy_names

if TYPE_CHECKING:
    from sae.encode import encode_active
    from sae.evaluate import SAEMetrics, decoder_cosines, evaluate_sae, reconstruction_metrics
    from sae.fit import check_fit, fit_warning
    from sae.storage import load_sae, save_sae
    from sae.training.config import TrainConfig
    from sae.training.sources import TrainingData
    from sae.training.train import train_sae
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "sae.encode": ["encode_active"],
            "sae.evaluate": ["SAEMetrics", "decoder_cosines", "evaluate_sae", "reconstruction_metrics"],
            "sae.fit": ["check_fit", "fit_warning"],
            "sae.storage": ["load_sae", "save_sae"],
            "sae.training.config": ["TrainConfig"],
            "sae.training.sources": ["TrainingData"],
            "sae.training.train": ["train_sae"],
        },
    )

__all__ = [
    "SAEMetrics",
    "TrainConfig",
    "TrainingData",
    "check_fit",
    "decoder_cosines",
    "encode_active",
    "evaluate_sae",
    "fit_warning",
    "load_sae",
    "reconstruction_metrics",
    "save_sae",
    "train_sae",
]
