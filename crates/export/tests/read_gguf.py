"""Reads a GGUF file with ggml's own Python package and compares it with the checkpoint that waterfill decoded it to.

    python read_gguf.py model.gguf checkpoint/

Prints one line; every value must be the same bit for bit."""

import json
import struct
import sys

import gguf
import numpy as np


def tensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        for name, info in header.items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                file.seek(start + begin)
                yield name, np.frombuffer(file.read(end - begin), np.float32).reshape(info["shape"])


def name_of(name):
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in outside:
        return outside[name]
    _, _, block, *part, end = name.split(".")
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }
    return f"blk.{block}.{parts['.'.join(part)]}.{end}"


reader = gguf.GGUFReader(sys.argv[1])
field = lambda key: reader.get_field(key).contents()
heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape))) for t in reader.tensors}
count = 0
for name, expected in tensors(sys.argv[2] + "/model.safetensors"):
    values = found[name_of(name)]
    n = heads.get(name_of(name).split(".")[-2])
    if n:
        # From pairs back to halves of heads.
        values = values.reshape(n, values.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
    assert np.array_equal(values.astype(np.float32), expected), name
    count += 1
tokens = field("tokenizer.ggml.tokens")
assert len(tokens) == field("llama.vocab_size") == len(field("tokenizer.ggml.token_type"))
print(f"{count} tensors and {len(tokens)} tokens read")
