#!/usr/bin/env bash
# Builds waterfill with the feature `cuda` into target/cuda/release, on a machine with or without a GPU.
# With CUDA's compiler on the PATH that one is used; else CUDA 13.0's packages are taken from the Python package
# index into target/cuda-toolkit. COMPUTE_CAP is the capability of the GPU that it will run on, times ten.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CUDA_COMPUTE_CAP="${COMPUTE_CAP:-90}"
if ! command -v nvcc >/dev/null; then
    toolkit="$PWD/target/cuda-toolkit"
    if [ ! -x "$toolkit/nvidia/cu13/bin/nvcc" ]; then
        python3 -m pip install -q --target "$toolkit" --no-deps 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' \
            'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cublas==13.0.*' \
            'nvidia-cuda-nvrtc==13.0.*' 'nvidia-curand==10.4.0.*'
    fi
    export CUDA_HOME="$toolkit/nvidia/cu13"
    export PATH="$CUDA_HOME/bin:$PATH"
    # The packages have versioned libraries alone; the linker looks for plain names.
    for lib in cudart.so.13 cublas.so.13 cublasLt.so.13 nvrtc.so.13 curand.so.10; do
        ln -sf "lib$lib" "$CUDA_HOME/lib/lib${lib%.*}"
    done
    ln -sfn lib "$CUDA_HOME/lib64"
    # The driver's library comes with the driver: here one in its place that has the names and says that there is no device.
    # It serves to link, and to try the program without a driver: LD_LIBRARY_PATH=target/cuda-toolkit/nvidia/cu13/lib:target/cuda-toolkit/stub
    mkdir -p "$toolkit/stub"
    if [ ! -e "$toolkit/stub/libcuda.so.1" ]; then
        grep -rhoE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?\b' "$(cargo metadata --format-version 1 --features cuda |
            python3 -c 'import json, sys, os
for p in json.load(sys.stdin)["packages"]:
    if p["name"] == "cudarc": print(os.path.dirname(p["manifest_path"]))')/src/driver/sys/mod.rs" | sort -u |
            awk '{ print "int " $1 "(void) { return 100; }" }' >"$toolkit/stub/stub.c"
        cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 "$toolkit/stub/stub.c" -o "$toolkit/stub/libcuda.so.1"
        ln -sf libcuda.so.1 "$toolkit/stub/libcuda.so"
    fi
    export LIBRARY_PATH="$CUDA_HOME/lib:$toolkit/stub:${LIBRARY_PATH:-}"
fi
nvcc --version | grep release
CARGO_TARGET_DIR=target/cuda cargo build --release --features cuda "$@"
