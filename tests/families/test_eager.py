"""The reference on another device: every tensor that its stages make is made where their inputs are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.errors import ProviderMissing, UsageError
from dovit_deploy.families.eager import EagerBackend, device_from_name
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.families.vit.network import VisionTransformer, stages_from_model
from dovit_deploy.runtime.session import Session
from tests.tiny import tiny_pixels, tiny_spec

SPECS = {
    "mask": tiny_spec(),
    "setr": tiny_spec(head="setr", gate="setr", gates=(2,), depth=3),
    "linear, conv stem": tiny_spec(stem="conv", gate="linear", head="linear", size=(64, 64)),
    "dense": tiny_spec(gates=(), head="linear", depth=2),
}


class OnOneDevice(TorchDispatchMode):
    """Fails when an operator makes a tensor anywhere but on the meta device, which stands for a GPU here."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for output in torch.utils._pytree.tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                assert output.device.type == "meta", f"{function} made a tensor on {output.device}"
        return outputs


@pytest.mark.parametrize("name", SPECS)
def test_stages_make_their_tensors_where_their_inputs_are(name) -> None:
    spec = SPECS[name]
    with torch.device("meta"):
        model = VisionTransformer(spec).eval()
        limits = torch.zeros(spec.classes), torch.zeros(())
        pixels, index = torch.zeros(1, 3, *spec.size), torch.arange(7)
    stages = stages_from_model(model)
    with torch.inference_mode(), OnOneDevice():
        inputs = (pixels, *limits) if spec.gates else (pixels,)
        for number, stage in enumerate(stages):
            outputs = stage(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            inputs = (outputs[0], index, *(limits if number < len(stages) - 2 else ()))
        DenseNetwork(model)(pixels)


def test_the_name_torch_is_the_cpu(tiny_bundle_path) -> None:
    with Session(Bundle.open(tiny_bundle_path), engine="torch") as named:
        assert named.backend.device == torch.device("cpu")
        pixels = tiny_pixels(named.bundle.manifest.spec.size).numpy()
        with Session(named.bundle, backend=EagerBackend(device="cpu")) as asked:
            np.testing.assert_array_equal(named.run(pixels)[0], asked.run(pixels)[0])


def test_a_missing_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        with pytest.raises(ProviderMissing, match=f"cuda:{torch.cuda.device_count()}"):
            EagerBackend(device=f"cuda:{torch.cuda.device_count()}")
    else:
        with pytest.raises(ProviderMissing, match="sees no GPU"):
            EagerBackend(device="cuda")


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_other_devices_are_usage_errors(name) -> None:
    with pytest.raises(UsageError, match="cpu, cuda"):
        device_from_name(name)
