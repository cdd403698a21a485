"""Reads a compressed-tensors directory and compares it with the checkpoint that waterfill decoded it to.

    python read_compressed.py model/ checkpoint/

Tables and types come from the `safetensors` package; where `compressed_tensors` (which needs torch) can be imported, its own
unpacking is compared too. Prints one line; every value must be the same bit for bit."""

import importlib.util
import json
import re
import sys

import numpy as np
from safetensors import safe_open

try:
    import torch

    # That file alone: the package as a whole wants a newer torch than some systems have.
    place = importlib.util.find_spec("compressed_tensors").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("helpers", f"{place}/compressors/pack_quantized/helpers.py")
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    unpack_from_int32 = helpers.unpack_from_int32
except (ImportError, AttributeError, FileNotFoundError):
    unpack_from_int32 = None


def read(path):
    """Tensors as numpy arrays; bf16 as f32, which numpy lacks."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
        start = 8 + size
        out = {}
        for name, info in table.items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            file.seek(start + begin)
            data = file.read(end - begin)
            if info["dtype"] == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, {"F32": np.float32, "I32": np.int32, "I64": np.int64, "F16": np.float16}[info["dtype"]])
            out[name] = values.reshape(info["shape"])
        return out


model, dense = sys.argv[1:3]
with safe_open(f"{model}/model.safetensors", "numpy") as file:
    names = set(file.keys())
config = json.load(open(f"{model}/config.json"))["quantization_config"]
assert config["quant_method"] == "compressed-tensors" and config["format"] == "pack-quantized"
schemes = {target: group["weights"] for group in config["config_groups"].values() for target in group["targets"]}
found, expected = read(f"{model}/model.safetensors"), read(f"{dense}/model.safetensors")
assert names == set(found)
packed = 0
for name, values in expected.items():
    if name in found:
        assert np.array_equal(found[name].astype(np.float32), values), name
        continue
    scheme = schemes.pop(name.removesuffix(".weight"))
    bits = scheme["num_bits"]
    words, scales = found[f"{name}_packed"], found[f"{name}_scale"]
    rows, cols = found[f"{name}_shape"]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words.view(np.uint32)[:, :, None] >> shifts & (2**bits - 1)).reshape(rows, cols).astype(np.int32) - 2 ** (bits - 1)
    if unpack_from_int32:
        theirs = unpack_from_int32(torch.from_numpy(words.copy()), bits, torch.Size((int(rows), int(cols))))
        assert np.array_equal(theirs.numpy().astype(np.int32), codes), name
    group = scheme["group_size"] or cols
    assert scales.shape == (rows, cols // group) and scheme["strategy"] == ("group" if scheme["group_size"] else "channel")
    assert np.array_equal(codes.astype(np.float32) * np.repeat(scales, group, axis=1), values), name
    packed += 1
assert not schemes, schemes
# What is fused has one scheme.
for target in [t for group in config["config_groups"].values() for t in group["targets"]]:
    for fused in (["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]):
        if target.split(".")[-1] in fused:
            same = {re.sub(r"[a-z]+_proj$", other, target) for other in fused}
            assert any(same <= set(group["targets"]) for group in config["config_groups"].values()), target
by = ", by compressed_tensors too" if unpack_from_int32 else "; compressed_tensors and torch are not there"
print(f"{packed} packed and {len(expected) - packed} plain tensors read{by}")
