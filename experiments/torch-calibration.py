"""The same product as `waterfill bench calibration`, in PyTorch: inputs and output gradients of the linear
layers of one Llama block, f32, no gradients of weights.

    python3 experiments/torch-calibration.py CHECKPOINT [--tokens 1024] [--repeats 5]
"""

import argparse
import json
import statistics
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("--tokens", type=int, default=1024)
parser.add_argument("--repeats", type=int, default=5)
arguments = parser.parse_args()

with open(f"{arguments.checkpoint}/config.json") as file:
    config = json.load(file)
hidden, wide = config["hidden_size"], config["intermediate_size"]
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
dim = config.get("head_dim") or hidden // heads
torch.manual_seed(1)


def weight(rows, cols):
    return torch.randn(rows, cols) / cols**0.5


query, key, value = weight(heads * dim, hidden), weight(kv_heads * dim, hidden), weight(kv_heads * dim, hidden)
output, gate, up, down = weight(hidden, heads * dim), weight(wide, hidden), weight(wide, hidden), weight(hidden, wide)
gain = torch.ones(hidden)
angles = torch.outer(torch.arange(arguments.tokens), config["rope_theta"] ** (-torch.arange(0, dim, 2) / dim))
cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
mask = torch.full((arguments.tokens, arguments.tokens), float("-inf")).triu(1)


def norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * gain


def rotate(x):
    half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
    return x * cos + half * sin


def product(x, gradient):
    """Inputs and output gradients of all seven layers, and the gradient of x."""
    x = x.requires_grad_()
    taps, inputs = [], []

    def linear(x, w):
        y = x @ w.T
        y.retain_grad()
        inputs.append(x.detach())
        taps.append(y)
        return y

    def split(t, n):
        return t.view(-1, n, dim).transpose(0, 1)

    h = norm(x)
    q, k, v = linear(h, query), linear(h, key), linear(h, value)
    groups = heads // kv_heads
    q = rotate(split(q, heads)) / dim**0.5
    k = rotate(split(k, kv_heads)).repeat_interleave(groups, 0)
    v = split(v, kv_heads).repeat_interleave(groups, 0)
    attended = ((q @ k.transpose(1, 2) + mask).softmax(-1) @ v).transpose(0, 1).reshape(-1, heads * dim)
    x1 = x + linear(attended, output)
    h = norm(x1)
    y = x1 + linear(torch.nn.functional.silu(linear(h, gate)) * linear(h, up), down)
    y.backward(gradient)
    return inputs, [t.grad for t in taps], x.grad


seconds = []
for _ in range(arguments.repeats + 1):
    x, gradient = torch.randn(arguments.tokens, hidden), torch.randn(arguments.tokens, hidden)
    start = time.perf_counter()
    product(x, gradient)
    seconds.append(time.perf_counter() - start)
seconds = seconds[1:]
median = statistics.median(seconds)
print(
    f"torch {torch.__version__}, {torch.get_num_threads()} threads: {arguments.tokens / median:.1f} tokens/s "
    f"({100 * (max(seconds) / median - 1):+.0f} % {100 * (min(seconds) / median - 1):+.0f} %)"
)
