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
    """Tensors as numpy arrays; bf16 and FP8 as f32, which numpy lacks. Names of bf16 tensors."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
        start = 8 + size
        out, halves = {}, set()
        for name, info in table.items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            file.seek(start + begin)
            data = file.read(end - begin)
            if info["dtype"] == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
                halves.add(name)
            elif info["dtype"] == "F8_E4M3":
                values = E4M3[np.frombuffer(data, np.uint8)]
            else:
                values = np.frombuffer(data, {"F32": np.float32, "I32": np.int32, "I64": np.int64, "F16": np.float16}[info["dtype"]])
            out[name] = values.reshape(info["shape"])
        return out, halves


def e4m3(code):
    sign, exponent, fraction = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return np.nan
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


E4M3 = np.array([e4m3(code) for code in range(256)], np.float32)


def to_bf16(values):
    """Rounds to the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


model, dense = sys.argv[1:3]
with safe_open(f"{model}/model.safetensors", "numpy") as file:
    names = set(file.keys())
config = json.load(open(f"{model}/config.json"))["quantization_config"]
assert config["quant_method"] == "compressed-tensors"
formats = {group["format"] for group in config["config_groups"].values()}
assert config["format"] == (formats.pop() if len(formats) == 1 else "mixed-precision")
schemes = {target: group["weights"] for group in config["config_groups"].values() for target in group["targets"]}
found, _ = read(f"{model}/model.safetensors")
expected, rounded = read(f"{dense}/model.safetensors")
assert names == set(found)
packed = 0
for name, values in expected.items():
    scheme = schemes.pop(name.removesuffix(".weight"), None)
    if scheme is None:
        assert np.array_equal(found[name].astype(np.float32), values), name
        continue
    bits, scales, (rows, cols) = scheme["num_bits"], found[f"{name}_scale"], values.shape
    group = scheme["group_size"] or cols
    assert scales.shape == (rows, cols // group) and scheme["strategy"] == ("group" if scheme["group_size"] else "channel")
    packed += 1
    # Scales of tuned checkpoints are exact, and their values rounded as the original's.
    rounding = to_bf16 if name in rounded else np.float32
    if scheme["type"] == "float":
        assert np.array_equal(rounding(found[name] * scales), values), name
        continue
    words = found[f"{name}_packed"]
    assert list(found[f"{name}_shape"]) == [rows, cols]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words.view(np.uint32)[:, :, None] >> shifts & (2**bits - 1)).reshape(rows, cols).astype(np.int32) - 2 ** (bits - 1)
    if unpack_from_int32:
        theirs = unpack_from_int32(torch.from_numpy(words.copy()), bits, torch.Size((int(rows), int(cols))))
        assert np.array_equal(theirs.numpy().astype(np.int32), codes), name
    assert np.array_equal(rounding(codes.astype(np.float32) * np.repeat(scales, group, axis=1)), values), name
assert not schemes, schemes
# What is fused has one scheme.
for target in [t for group in config["config_groups"].values() for t in group["targets"]]:
    for fused in (["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]):
        if target.split(".")[-1] in fused:
            same = {re.sub(r"[a-z]+_proj$", other, target) for other in fused}
            assert any(same <= set(group["targets"]) for group in config["config_groups"].values()), target
by = ", by compressed_tensors too" if unpack_from_int32 else "; compressed_tensors and torch are not there"
print(f"{packed} packed and {len(expected) - packed} plain tensors read{by}")
