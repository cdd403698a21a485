//! The codec from outside: packing, tools by configuration, and what is told of them.

mod common;

use common::{Place, pipeline};

#[test]
fn packing_a_model_and_back_gives_the_same_file() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    place.ok(&["calibrate", "p.yaml"]);
    let fixture = std::fs::read_dir(place.path("results/fixture/fixture")).unwrap().next().unwrap().unwrap().path();
    let model = fixture.join("model/model.safetensors");
    let model = model.to_str().unwrap();
    let said = place.ok(&["pack", model, "m.wfp"]);
    assert!(said.contains("bits for each of"), "{said}");
    let (packed, original) = (std::fs::read(place.path("m.wfp")).unwrap(), std::fs::read(model).unwrap());
    assert!(packed.len() * 4 < original.len() * 3, "{} of {}", packed.len(), original.len());
    assert!(place.ok(&["verify", "m.wfp"]).contains("matches its digests"));
    assert!(place.json(&["unpack", "m.wfp", "back.safetensors"])["unpacked"].is_string());
    assert!(std::fs::read(place.path("back.safetensors")).unwrap() == original);

    // What people get wrong.
    assert!(place.fails(&["unpack", "m.wfp", "back.safetensors"]).contains("back.safetensors: exists already"));
    assert!(place.fails(&["pack", "m.wfp", "twice.wfp"]).contains("not safetensors"));
    assert!(place.fails(&["unpack", model, "x"]).contains("not a packed file"));
    assert!(place.fails(&["pack", "nowhere", "x"]).contains("nowhere"));
    std::fs::write(place.path("cut.wfp"), &packed[..packed.len() / 2]).unwrap();
    assert!(place.fails(&["unpack", "cut.wfp", "x"]).contains("cut.wfp"));
    let mut damaged = packed.clone();
    damaged[packed.len() / 3] ^= 4;
    std::fs::write(place.path("damaged.wfp"), damaged).unwrap();
    let message = place.fails(&["unpack", "damaged.wfp", "x"]);
    assert!(message.contains("tensor model.") && message.contains("slice"), "{message}");
    assert!(!place.path("x").exists(), "nothing half written is left");
}

#[test]
fn tools_are_chosen_in_yaml_and_shown() {
    let place = Place::new();
    let with = |encode: &str| pipeline("lambdas: [1e-4]") + &format!("encode: {{{encode}}}\n");
    let bytes = |file: &str, encode: &str| {
        place.write(file, &with(encode));
        let output = place.json(&["encode", file]);
        let point = &output["points"][0];
        (point["bytes"].as_u64().unwrap(), point["checkpoint"].as_str().unwrap().to_string(), point["usage"].clone())
    };
    let (fast, _, none) = bytes("fast.yaml", "preset: fast, feedback: false");
    let (best, checkpoint, usage) =
        bytes("best.yaml", "preset: best, with: [dct, rdoq], without: [palette], feedback: false");
    assert!(best < fast, "{best} with tools, {fast} without");
    assert_eq!(none["up_proj"].as_object().unwrap().len(), 1, "{none}");
    assert!(usage["up_proj"].as_object().unwrap().len() > 1, "{usage}");
    let said = place.ok(&["inspect", &checkpoint]);
    assert!(said.contains("tiles with"), "{said}");
    let experimental = |encode: &str| {
        place.write("e.yaml", &with(encode));
        place.fails(&["validate", "e.yaml"])
    };
    assert!(experimental("with: [bit-planes]").contains("experimental"));
    assert!(experimental("with: [wavelet]").contains("wavelet"));
    assert!(experimental("preset: slow").contains("slow"));
    place.write("e.yaml", &(with("with: [bit-planes, tile8]") + "experimental: true\n"));
    let output = place.json(&["encode", "e.yaml"]);
    let said = place.ok(&["inspect", output["points"][0]["checkpoint"].as_str().unwrap()]);
    assert!(said.contains("bits per weight"), "{said}");
}

#[test]
fn the_benchmark_reports_every_figure() {
    let place = Place::new();
    let figures = place.json(&["bench", "codec", "--side", "256", "--repeats", "1"]);
    for key in [
        "lossless_gaussian_bits_per_weight",
        "lossless_decode_vs_zstd3",
        "lossless_encode_vs_zstd3",
        "lossless_decode_bytes_per_second",
        "level_decode_weights_per_second",
        "transform_decode_weights_per_second",
        "search_encode_weights_per_second",
        "two_thread_speedup",
    ] {
        assert!(figures[key].as_f64().is_some_and(|v| v > 0.0), "{key} of {figures}");
    }
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let output = place.json(&["encode", "p.yaml"]);
    let figures = place.json(&["bench", "entropy", output["points"][0]["checkpoint"].as_str().unwrap()]);
    assert_eq!(figures["codings"].as_array().unwrap().len(), 3);
}
