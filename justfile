# Run all stages of configs/NAME.yaml (try: just run tiny)
run NAME *ARGS:
    cargo run --release -- run configs/{{NAME}}.yaml {{ARGS}}

# Measure the sensitivity of every tile of configs/MODEL.yaml
calibrate MODEL *ARGS:
    cargo run --release -- calibrate configs/{{MODEL}}.yaml {{ARGS}}

# Run every combination in experiments/NAME.yaml; runs share what they can
sweep NAME *ARGS:
    cargo run --release -- sweep experiments/{{NAME}}.yaml {{ARGS}}

# Train the model of configs/NAME-train.yaml
train NAME *ARGS:
    cargo run --release -- train configs/{{NAME}}-train.yaml {{ARGS}}

# Kill runs at TIMES moments, resume them, and compare the results with those of a run left alone
kills TIMES="50":
    WATERFILL_KILLS={{TIMES}} cargo test -p waterfill --release --test faults killed

# Run all tests
test:
    cargo test --workspace --release

# Measure the codec's speed
bench:
    cargo bench -p waterfill-codec
    cargo run --release -- bench codec

# Check formatting, layout, dependencies and lints as continuous integration does
lint:
    cargo fmt --all --check
    .ci/check-cycles
    .ci/file-table --check
    .ci/check-links
    .ci/check-dependencies
    cargo clippy --workspace --all-targets --release -- -D warnings

# Before a commit: format, write the tables of files, check everything but the tests
precommit:
    cargo fmt --all
    .ci/file-table
    just lint
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --release --quiet

# Flip TIMES bits of a packed file and of a compressed checkpoint; each must be noticed
flips TIMES="10000":
    WATERFILL_FLIPS={{TIMES}} cargo test -p waterfill --release --test flips
    WATERFILL_FLIPS={{TIMES}} cargo test -p waterfill-checkpoint --release --test pack

# Fuzz TARGET (header, slice, tile, container, encode_decode) for SECONDS; needs cargo-fuzz and a nightly compiler
fuzz TARGET SECONDS="600":
    cd crates/checkpoint/fuzz && mkdir -p corpus/{{TARGET}} && cargo +nightly fuzz run -O {{TARGET}} corpus/{{TARGET}} ../../codec/tests/vectors -- -max_total_time={{SECONDS}} -rss_limit_mb=4000

# Build the Python wheel and test it
wheel:
    crates/python/test.sh

# Build with CUDA for a GPU of capability COMPUTE_CAP (times ten) into target/cuda/release; installs CUDA's compiler if there is none
build-cuda COMPUTE_CAP="90":
    COMPUTE_CAP={{COMPUTE_CAP}} experiments/gpu/build.sh
