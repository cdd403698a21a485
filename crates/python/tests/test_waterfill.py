"""The wheel against compressed checkpoints that the program has written: WATERFILL_CHECKPOINT, WATERFILL_LAYERS of two, and
WATERFILL_TRELLIS with codes of a trellis."""

import os
import threading

import numpy as np
import pytest

import waterfill

PATH = os.environ["WATERFILL_CHECKPOINT"]


@pytest.fixture(scope="module")
def checkpoint():
    return waterfill.open(PATH)


def test_tensors_are_listed_and_decoded(checkpoint):
    names = checkpoint.names()
    assert names == sorted(names) and "model.norm.weight" in checkpoint
    coded = [n for n in names if checkpoint.is_coded(n)]
    assert coded and len(coded) < len(names)
    for name in names:
        values = checkpoint.tensor(name)
        assert values.shape == checkpoint.shape(name) and values.dtype == np.float32
        assert np.isfinite(values).all() and values.std() > 0 or "norm" in name
        half = checkpoint.tensor(name, "float16")
        assert np.array_equal(half, values.astype(np.float16))


def packed_formats(checkpoint):
    """Formats of packed tiles, whose values are the decoded ones."""
    formats = set()
    for name in [n for n in checkpoint.names() if checkpoint.is_coded(n)]:
        dense, packed = checkpoint.tensor(name), checkpoint.packed(name)
        assert packed.shape == dense.shape
        across = -(-dense.shape[1] // 16)
        found = np.full((-(-dense.shape[0] // 16), across, 16, 16), np.nan, np.float32)
        for bucket in packed.buckets:
            formats.add(bucket.format)
            if bucket.format.startswith("fp8"):
                continue
            codes = packed.levels(bucket).astype(np.float32)
            if len(bucket.scales):
                codes = codes * bucket.scales[:, None, None]
            plain = not len(bucket.scales)
            rows, cols = bucket.tiles // across, bucket.tiles % across
            if not plain:
                scales = [np.pad(s, (0, -len(s) % 16)).reshape(-1, 16) for s in (packed.row_scales, packed.col_scales)]
                codes = codes * scales[0][rows][:, :, None] * scales[1][cols][:, None, :]
            found[rows, cols] = codes
        found = found.swapaxes(1, 2).reshape(found.shape[0] * 16, -1)[: dense.shape[0], : dense.shape[1]]
        there = ~np.isnan(found)
        assert there.any() and np.all(np.abs(found - dense)[there] <= np.abs(dense)[there] * (1 / 256 + 1e-4))
        assert packed.resident_bytes < dense.nbytes
    return formats


def test_packed_tiles_have_the_decoded_values(checkpoint):
    formats = packed_formats(checkpoint)
    assert len(formats & {"int2", "int3", "int4", "int5", "int6", "int7", "int8"}) > 1, formats
    assert all(checkpoint.packed(n).trellis is None for n in checkpoint.names() if checkpoint.is_coded(n))


def test_packed_codes_of_a_trellis_have_the_decoded_values():
    checkpoint = waterfill.open(os.environ["WATERFILL_TRELLIS"])
    formats = packed_formats(checkpoint)
    assert len([f for f in formats if f.startswith("trellis")]) > 1, formats
    for packed in (checkpoint.packed(n) for n in checkpoint.names() if checkpoint.is_coded(n)):
        for bucket in (b for b in packed.buckets if b.code_bits):
            assert packed.trellis[0] == 12 and packed.trellis[1] >= 1
            codes, levels = bucket.codes(), packed.levels(bucket)
            assert codes.dtype == np.uint8 and codes.max() < 2**bucket.code_bits
            assert levels.shape == codes.shape and np.abs(levels).max() <= 413


def test_levels_of_states_are_those_of_the_bitstream():
    def level(state):
        x = (state * 2239133029 + 3118044064) % 2**32
        s = (sum(x.to_bytes(4, "little")) - 510) >> 1
        return s + ((5 * s * s * s) >> 19)

    assert waterfill.trellis_level(np.arange(2**16)).tolist() == [level(state) for state in range(2**16)]
    assert waterfill.trellis_level(5) == level(5)


def test_errors_are_told(checkpoint, tmp_path):
    with pytest.raises(KeyError, match="no.such.tensor"):
        checkpoint.tensor("no.such.tensor")
    with pytest.raises(ValueError, match="float64"):
        checkpoint.tensor("model.norm.weight", "float64")
    with pytest.raises(ValueError, match="framework"):
        checkpoint.tensor("model.norm.weight", framework="jax")
    with pytest.raises(ValueError, match="no model.safetensors"):
        waterfill.open(tmp_path)
    damaged = tmp_path / "model.safetensors"
    data = bytearray(open(os.path.join(PATH, "model.safetensors"), "rb").read())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    other = waterfill.open(damaged)
    with pytest.raises(ValueError):
        for name in other.names():
            other.tensor(name)


def test_layers_are_opened_as_far_as_asked(checkpoint):
    path = os.environ["WATERFILL_LAYERS"]
    whole, base = waterfill.open(path), waterfill.open(path, layers=1)
    assert (checkpoint.layers, whole.layers, base.layers) == (1, 2, 1)
    name = next(n for n in whole.names() if n.endswith("q_proj.weight"))
    fine, coarse = whole.tensor(name), base.tensor(name)
    assert fine.shape == coarse.shape and not np.array_equal(fine, coarse)
    size = os.path.getsize(os.path.join(path, "model.safetensors"))
    assert np.array_equal(waterfill.open(path, bytes=size).tensor(name), coarse)
    for wrong in ({"layers": 0}, {"layers": 1, "bytes": size}, {"bytes": 10}):
        with pytest.raises(ValueError):
            waterfill.open(path, **wrong)


def test_threads_decode_at_once(checkpoint):
    name = next(n for n in checkpoint.names() if checkpoint.is_coded(n))
    expected, found = checkpoint.tensor(name), []
    threads = [threading.Thread(target=lambda: found.append(checkpoint.tensor(name))) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(found) == 4 and all(np.array_equal(f, expected) for f in found)


def test_torch_modules_are_filled(checkpoint):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    names = checkpoint.names()

    class Model(torch.nn.Module):
        def state_dict(self):
            return self.tensors

    model = Model()
    model.tensors = {n: torch.zeros(checkpoint.shape(n), dtype=torch.bfloat16) for n in names}
    model.tensors["tied"] = model.tensors[names[0]]
    waterfill.load_into(model, PATH)
    for name in names:
        assert torch.equal(model.tensors[name], checkpoint.tensor(name, framework="torch"))
    model.tensors["other"] = torch.zeros(2)
    with pytest.raises(ValueError, match="other"):
        waterfill.load_into(model, PATH)
