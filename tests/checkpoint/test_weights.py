"""Weights: streamed, strict, mapped where that is safe, and small in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from behold.checkpoint.rename import RenameRules
from behold.checkpoint.stored import StoredRows
from behold.checkpoint.weights import equal_data, load_weights, stored_dtype, stored_tensors
from behold.errors import CheckpointNotFoundError, WeightsError

CPU = torch.device("cpu")
INDEX = "model.safetensors.index.json"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2, bias=False)


def net() -> Net:
    with torch.device("meta"):
        return Net()


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"first.weight": (3, 4), "first.bias": (3,), "second.weight": (2, 3)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def load(folder: Path, rules: RenameRules = RenameRules(), **options: object) -> Net:  # noqa: B008 - frozen
    module = net()
    load_weights(module, folder, rules, **({"device": CPU, "dtype": torch.float32} | options))  # type: ignore[arg-type]
    return module


def assert_loaded(module: Net, dtype: torch.dtype = torch.float32) -> None:
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights()[name].to(dtype))
        assert not parameter.requires_grad


def test_single_file(tmp_path: Path) -> None:
    assert_loaded(load(write(tmp_path, weights())))


def test_sharded_files(tmp_path: Path) -> None:
    tensors = weights()
    for index, name in enumerate(tensors):
        save_file({name: tensors[name]}, tmp_path / f"model-{index}.safetensors")
    weight_map = {name: f"model-{index}.safetensors" for index, name in enumerate(tensors)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_loaded(load(tmp_path))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_converted(tmp_path: Path, stored: torch.dtype) -> None:
    module = load(write(tmp_path, {name: tensor.to(stored) for name, tensor in weights().items()}))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights()[name].to(stored).float())
    assert stored_dtype(tmp_path) is stored


def test_the_same_type_is_mapped_not_copied_and_never_written_back(tmp_path: Path) -> None:
    module = load(write(tmp_path, weights()))
    before = (tmp_path / "model.safetensors").read_bytes()
    storages = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    assert len(storages) == 1, "all parameters are views of one mapping"
    with torch.no_grad():
        module.first.weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_unaligned_data_is_copied(tmp_path: Path) -> None:
    """A header whose length is odd puts float32 data on odd addresses."""
    write(tmp_path, weights())
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    longer = raw[8 : 8 + length] + b" "
    (tmp_path / "model.safetensors").write_bytes((length + 1).to_bytes(8, "little") + longer + raw[8 + length :])
    assert_loaded(load(tmp_path))


def test_rules_are_applied(tmp_path: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in weights().items()} | {"model.x.inv_freq": torch.ones(2)}
    assert_loaded(load(write(tmp_path, tensors), RenameRules(prefixes=(("model.", ""),), drop=(".inv_freq",))))


def test_submodules_are_announced_when_they_are_whole(tmp_path: Path) -> None:
    seen, progress = [], []

    class Finished:
        def takes(self, name: str) -> bool:
            return name == "first"

        def __call__(self, name: str, module: nn.Module, weight: StoredRows | None) -> None:
            missing = [key for key, value in module.named_parameters() if value.is_meta]
            assert missing == ([] if weight is None else ["weight"])
            seen.append((name, module.weight.dtype if weight is None else weight.dtype))
            if weight is not None:
                assert torch.equal(weight[:], weights()["first.weight"]) and weight.shape == module.weight.shape
                assert torch.equal(weight[1:2], weight[:][1:2]) and weight.nbytes == weight[:].nbytes

    folder = write(tmp_path, weights())
    load(folder, dtype=torch.float64, finished=Finished(), progress=lambda done, total: progress.append((done, total)))
    assert seen == [("first", torch.float32), ("second", torch.float64)], "what is replaced comes as it is stored"
    assert progress[-1] == (84, 84) and progress == sorted(progress)


# --- refusals ----------------------------------------------------------------------------------------------------


def refused(folder: Path, rules: RenameRules = RenameRules()) -> str:  # noqa: B008 - frozen
    module = net()
    with pytest.raises(WeightsError) as caught:
        load_weights(module, folder, rules, device=CPU, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in module.parameters()), "nothing was read before the report"
    return str(caught.value)


def test_every_mismatch_is_in_one_report(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["first.bias"]
    tensors |= {"second.weight": torch.zeros(3, 3), "third.weight": torch.zeros(1), "fourth": torch.zeros(1)}
    report = refused(write(tmp_path, tensors))
    assert "missing (1): first.bias" in report
    assert "unexpected (2): fourth, third.weight" in report
    assert "wrong shape (1): second.weight: the file has [3, 3], the config asks for [2, 3]" in report
    assert str(tmp_path) in report


def test_long_lists_are_cut_short(tmp_path: Path) -> None:
    report = refused(write(tmp_path, weights() | {f"extra.{index:02}": torch.zeros(1) for index in range(20)}))
    assert "unexpected (20): extra.00" in report and "extra.07 and 12 more" in report and "extra.08" not in report


def test_two_names_for_one_weight(tmp_path: Path) -> None:
    tensors = weights() | {"model.first.bias": torch.zeros(3)}
    report = refused(write(tmp_path, tensors), RenameRules(prefixes=(("model.", ""),)))
    assert "twice (1): first.bias and model.first.bias" in report


def test_integer_weights(tmp_path: Path) -> None:
    report = refused(write(tmp_path, weights() | {"first.bias": torch.zeros(3, dtype=torch.int32)}))
    assert "not a floating type (1): first.bias: I32" in report


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_remedy_and_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not even a pickle")
    report = refused(tmp_path)
    assert name in report and "safetensors" in report and "save_pretrained" in report


@pytest.mark.parametrize("keep", [4, 20, 100, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, weights()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a valid safetensors file" in refused(tmp_path)


def test_a_header_that_lies_about_sizes(tmp_path: Path) -> None:
    path = write(tmp_path, weights()) / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[3,4]', b'"shape":[3,5]'))
    assert "bytes for shape" in refused(tmp_path)


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, weights()).joinpath("model.safetensors").rename(tmp_path / "a.safetensors")
    weight_map = {"first.weight": "a.safetensors", "first.bias": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointNotFoundError, match=r"1 of 2 weight files: b\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("index", ["{}", "[", '{"weight_map": 3}'])
def test_a_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    assert "is damaged" in refused(tmp_path)


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path, weights())
    (tmp_path / "model" / INDEX).write_text(json.dumps({"weight_map": {"first.weight": "../model.safetensors"}}))
    assert "outside its folder" in refused(tmp_path / "model")


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="has no weights"):
        stored_tensors(tmp_path)


def test_equal_data(tmp_path: Path) -> None:
    save_file(
        {"a": torch.ones(5), "b": torch.ones(5), "c": torch.zeros(5), "d": torch.ones(5, 1)},
        tmp_path / "model.safetensors",
    )
    stored = stored_tensors(tmp_path)
    assert equal_data(stored["a"], stored["b"])
    assert not equal_data(stored["a"], stored["c"])
    assert not equal_data(stored["a"], stored["d"])


# --- memory ------------------------------------------------------------------------------------------------------

PEAK = """
import sys
from pathlib import Path
import torch
from torch import nn
from behold.checkpoint.rename import RenameRules
from behold.checkpoint.weights import load_weights
from behold.quant.apply import Quantizer

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

torch.ones(8, 8) @ torch.ones(8, 8)
with torch.device("meta"):
    n_layers = int(sys.argv[4])
    module = nn.Sequential(*(nn.Linear(2048, 2048 * 24 // n_layers, bias=False) for _ in range(n_layers)))
before = peak_bytes()
quantize = None if sys.argv[3] == "None" else sys.argv[3]
hook = Quantizer(quantize, module) if quantize else None
load_weights(module, Path(sys.argv[1]), RenameRules(), device=torch.device("cpu"), dtype=getattr(torch, sys.argv[2]),
             finished=hook)
for layer in module:
    layer(torch.ones(1, 2048, dtype=getattr(torch, sys.argv[2])))
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("stored", "quantize", "n_layers", "slack_mib"),
    [
        (torch.float32, None, 24, 48),
        (torch.bfloat16, None, 24, 80),
        (torch.float32, "int8", 24, 144),  # holes in the heap: 75 to 95 MiB
        (torch.float32, "int8", 1, 144),  # nothing as large as the layer
    ],
)
def test_peak_memory_is_the_weights_and_a_little(
    tmp_path: Path, stored: torch.dtype, quantize: str | None, n_layers: int, slack_mib: int
) -> None:
    """384 MiB in all: a second copy of them, or keeping them beside the quantised ones, would stand out."""
    rows = 2048 * 24 // n_layers
    write(tmp_path, {f"{index}.weight": torch.full((rows, 2048), 0.01, dtype=stored) for index in range(n_layers)})
    command = [sys.executable, "-c", PEAK, str(tmp_path), "float32", str(quantize), str(n_layers)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(run.stdout) < (384 * (0.25 if quantize else 1) + slack_mib) * 2**20
