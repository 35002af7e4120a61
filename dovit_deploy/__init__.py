"""dovit-deploy: dynamic-token vision transformers from checkpoint to fast, exact, measured segmentation.

    bundle = Bundle.open("x.dovit")
    with Session(bundle, engine="onnxruntime", threads=1) as session:
        logits, report = session.run(pixels)
        result = Predictor(session).predict(rgb)

Names are imported when first used, so that `import dovit_deploy` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dovit_deploy.errors import (
    BundleError,
    CheckError,
    CheckpointMismatch,
    ConfigError,
    DatasetError,
    DeviceFailed,
    DeviceOutOfMemory,
    DigestMismatch,
    DovitError,
    EncoderMissing,
    EngineBuildFailed,
    EngineInvalid,
    EngineMissing,
    EnvironmentProblem,
    FileMissing,
    FileUnlisted,
    GraphMismatch,
    HeadMissing,
    InputError,
    Interrupted,
    ManifestInvalid,
    NetworkUnknown,
    OutputFailed,
    PackageMissing,
    ParityError,
    PartialFailure,
    PathEscapes,
    PickleRefused,
    ProviderMissing,
    SourceError,
    UntrustedError,
    UsageError,
    VersionUnknown,
    WeightsInvalid,
)

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.runtime.classification import ClassificationResult, Classifier
    from dovit_deploy.runtime.results import TokenReport
    from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
    from dovit_deploy.runtime.session import Session
    from dovit_deploy.runtime.tasks import predictor_for
    from dovit_deploy.sources.source import Frame

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "CheckError",
    "CheckpointMismatch",
    "ClassificationResult",
    "Classifier",
    "ConfigError",
    "DatasetError",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "DigestMismatch",
    "DovitError",
    "EncoderMissing",
    "EngineBuildFailed",
    "EngineInvalid",
    "EngineMissing",
    "EnvironmentProblem",
    "FileMissing",
    "FileUnlisted",
    "Frame",
    "GraphMismatch",
    "HeadMissing",
    "InputError",
    "Interrupted",
    "ManifestInvalid",
    "NetworkUnknown",
    "OutputFailed",
    "PackageMissing",
    "ParityError",
    "PartialFailure",
    "PathEscapes",
    "PickleRefused",
    "Predictor",
    "ProviderMissing",
    "SegmentationResult",
    "Session",
    "SourceError",
    "TokenReport",
    "UntrustedError",
    "UsageError",
    "VersionUnknown",
    "WeightsInvalid",
    "__version__",
    "predictor_for",
]

# Not the errors: those are plain classes, while these import NumPy and pydantic.
_HOMES = {
    "Bundle": "dovit_deploy.bundle.bundle",
    "ClassificationResult": "dovit_deploy.runtime.classification",
    "Classifier": "dovit_deploy.runtime.classification",
    "Frame": "dovit_deploy.sources.source",
    "Predictor": "dovit_deploy.runtime.segmentation",
    "SegmentationResult": "dovit_deploy.runtime.segmentation",
    "Session": "dovit_deploy.runtime.session",
    "TokenReport": "dovit_deploy.runtime.results",
    "predictor_for": "dovit_deploy.runtime.tasks",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'dovit_deploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    # `globals()` lacks the names that were not used yet.
    return sorted({*globals(), *__all__})
