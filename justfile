# Run all stages of configs/NAME.yaml (try: just run fixture)
run NAME *ARGS:
    cargo run --release -- run configs/{{NAME}}.yaml {{ARGS}}

# Measure the sensitivity of every tile of configs/MODEL.yaml
calibrate MODEL *ARGS:
    cargo run --release -- calibrate configs/{{MODEL}}.yaml {{ARGS}}

# Run the lambda sweep of experiments/NAME.yaml; one calibration serves all its points
sweep NAME *ARGS:
    cargo run --release -- run experiments/{{NAME}}.yaml {{ARGS}}

# Run all tests
test:
    cargo test --workspace --release

# Measure the codec's speed
bench:
    cargo bench -p waterfill-codec

# Check formatting and lints as continuous integration does
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --release -- -D warnings
