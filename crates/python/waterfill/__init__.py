"""Decoder of checkpoints compressed by waterfill.

    checkpoint = waterfill.open("results/.../checkpoint")
    checkpoint.tensor("model.norm.weight")                      # numpy, float32
    checkpoint.tensor("model.norm.weight", framework="torch")   # torch, in the tensor's own type or the one asked for
    waterfill.load_into(transformers_model, "results/.../checkpoint")
"""

import numpy as np

from ._native import Checkpoint as _Checkpoint

__all__ = ["Bucket", "Checkpoint", "Packed", "load_into", "open", "trellis_level"]

# Bits of the planes that a level or a code lies in, the lowest first.
_PLANES = {"int2": [2], "int3": [2, 1], "int4": [4], "int5": [4, 1], "int6": [4, 2], "int7": [4, 2, 1]}
_PLANES.update({"trellis1": [1], "trellis8": [8]}, **{f"trellis{n}": _PLANES[f"int{n}"] for n in range(2, 8)})
_NUMPY = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


def trellis_level(states):
    """Levels of states of a bit-shift trellis (section 7.8 of docs/BITSTREAM.md), as int32."""
    x = (np.asarray(states, np.int64) * 2239133029 + 3118044064) & 0xFFFFFFFF
    s = ((x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24) - 510) >> 1
    return (s + (5 * s**3 >> 19)).astype(np.int32)


class Bucket:
    """Tiles of one format, `int2` to `int8`, `trellis1` to `trellis8`, `fp8-e4m3`, `fp8-e5m2` or an element type.

    `tiles` says where each is (row of tiles times tiles across, plus column of tiles), `scales` has one for each (none
    of elements), `data` is `[tiles, bytes of a tile]`.
    """

    def __init__(self, made):
        self.format = made["format"]
        # Bits of a code of a trellis, 0 in other formats.
        self.code_bits = int(self.format[7:]) if self.format.startswith("trellis") else 0
        self.tiles = np.frombuffer(made["tiles"], "<u4")
        self.scales = np.frombuffer(made["scales"], "<f4")
        self.data = np.frombuffer(made["data"], np.uint8).reshape(len(self.tiles), -1)

    def codes(self):
        """Levels `[tiles, 16, 16]` of integer formats, codes of trellises as uint8, elements as float32, FP8 as bytes."""
        shape = (len(self.tiles), 16, 16)
        if self.format in _PLANES:
            levels, width, start = np.zeros((len(self.tiles), 256), np.uint8), 0, 0
            for bits in _PLANES[self.format]:
                plane = self.data[:, start : start + 32 * bits]
                parts = [(plane >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
                levels |= np.stack(parts, axis=-1).reshape(levels.shape) << width
                width, start = width + bits, start + 32 * bits
            if self.code_bits:
                return levels.reshape(shape)
            return ((levels << (8 - width)).view(np.int8) >> (8 - width)).reshape(shape)
        if self.format == "int8":
            return self.data.view(np.int8).reshape(shape)
        if self.format == "bfloat16":
            return (self.data.view("<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        if self.format in _NUMPY:
            return self.data.view(_NUMPY[self.format]).astype("<f4").reshape(shape)
        return self.data.reshape(shape)


class Packed:
    """A matrix in tiles of 16x16; a level times the scales of its tile, row and column is a weight.

    `trellis` has the bits of a state of the trellis that codes belong to, and the rows of tiles after which states start
    again from 0; it is None for a matrix without one.
    """

    def __init__(self, made):
        self.shape, self.dtype, self.resident_bytes = made["shape"], made["dtype"], made["resident_bytes"]
        ones = [np.ones(n, np.float32) for n in self.shape]
        scales = [np.frombuffer(made[k], "<f4") for k in ("row_scales", "col_scales")]
        self.row_scales, self.col_scales = (s if len(s) else one for s, one in zip(scales, ones))
        self.trellis, self.buckets = made["trellis"], [Bucket(b) for b in made["buckets"]]
        self._before = None

    def levels(self, bucket):
        """Levels `[tiles, 16, 16]` of a bucket: its codes, or those of the trellis's states where codes belong to one."""
        if not bucket.code_bits:
            return bucket.codes()
        across = -(-self.shape[1] // 16)
        if self._before is None:
            # A tile has at least as many bits a column as a state: what is above it does not matter to the state below it.
            after = np.zeros((-(-self.shape[0] // 16), across, 16), np.uint32)
            for other in (b for b in self.buckets if b.code_bits):
                after[other.tiles // across, other.tiles % across] = self._states(other, 0)[:, -1]
            self._before = np.zeros_like(after)
            self._before[1:] = after[:-1]
            self._before[:: self.trellis[1]] = 0
        before = self._before[bucket.tiles // across, bucket.tiles % across]
        return trellis_level(np.arange(2 ** self.trellis[0]))[self._states(bucket, before)]

    def _states(self, bucket, before):
        """States `[tiles, 16, 16]` that codes lead to from those before each tile's columns."""
        codes, state = bucket.codes(), np.uint32(0) + before
        states = np.empty(codes.shape, np.uint32)
        for row in range(16):
            state = (state << bucket.code_bits | codes[:, row]) & (2 ** self.trellis[0] - 1)
            states[:, row] = state
        return states


class Checkpoint:
    """A checkpoint directory or one safetensors file, compressed or not."""

    def __init__(self, path, layers=None, bytes=None):
        self._checkpoint = _Checkpoint(path, layers, bytes)

    @property
    def layers(self):
        """Quality layers that are open, the base counted."""
        return self._checkpoint.layers()

    def names(self):
        """Names of all tensors, sorted."""
        return self._checkpoint.names()

    def __contains__(self, name):
        return name in set(self.names())

    def shape(self, name):
        """Shape of the decoded tensor."""
        return tuple(self._checkpoint.info(name)[0])

    def is_coded(self, name):
        """Whether the tensor is coded."""
        return self._checkpoint.info(name)[2]

    def tensor(self, name, dtype=None, framework="numpy"):
        """A tensor, decoded; `dtype` is float32, float16 or, with torch, bfloat16."""
        if framework == "numpy":
            dtype = dtype or "float32"
            if dtype not in _NUMPY:
                raise ValueError(f"dtype {dtype!r}: numpy has float32 and float16; framework='torch' has bfloat16")
            values = np.frombuffer(self._checkpoint.decode(name, dtype), _NUMPY[dtype])
            return values.reshape(self.shape(name))
        if framework != "torch":
            raise ValueError(f"framework {framework!r}, expected numpy or torch")
        import torch

        dtype = dtype or "bfloat16"
        if not isinstance(dtype, str):
            dtype = str(dtype).rsplit(".", 1)[-1]
        data = self._checkpoint.decode(name, dtype)
        return torch.frombuffer(data, dtype=getattr(torch, dtype)).reshape(self.shape(name))

    def packed(self, name):
        """A matrix in tiles to compute with."""
        return Packed(self._checkpoint.packed(name))


def open(path, layers=None, bytes=None):
    """Opens a checkpoint directory or a safetensors file; at most `layers` quality layers, or `bytes` bytes, of a directory."""
    return Checkpoint(path, layers, bytes)


def load_into(model, path, layers=None, bytes=None):
    """Copies a checkpoint's tensors into a torch module of the same names, such as a transformers model.

    Parameters that the checkpoint has no tensor for must share their memory with one that it has (tied embeddings).
    """
    import torch

    checkpoint = open(path, layers, bytes)
    names, filled, missing = set(checkpoint.names()), set(), []
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if name not in names:
                missing.append((name, parameter))
                continue
            if tuple(parameter.shape) != checkpoint.shape(name):
                raise ValueError(f"{name}: shape {tuple(parameter.shape)}, the checkpoint has {checkpoint.shape(name)}")
            dtype = parameter.dtype if parameter.dtype in (torch.bfloat16, torch.float16) else torch.float32
            parameter.copy_(checkpoint.tensor(name, dtype, "torch"))
            filled.add(parameter.data_ptr())
    absent = [name for name, parameter in missing if parameter.data_ptr() not in filled]
    if absent:
        raise ValueError(f"the checkpoint has no {', '.join(absent)}")
    return model
