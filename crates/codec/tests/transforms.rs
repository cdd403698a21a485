//! The normative bases are what the specification's formulas give.

use std::f64::consts::PI;
use std::fmt::Write;

#[test]
fn bases_equal_their_formulas() {
    let mut expected = String::from(
        "//! Normative bases, 2^12 times the orthonormal ones, row k the k-th vector; `tests/transforms.rs`\n\
         //! holds the formulas. Any change is a change of the bitstream.\n",
    );
    for side in [16usize, 8, 4] {
        let s = side as f64;
        let dct = |k: f64, n: f64| {
            (if k == 0.0 { 1.0 / s } else { 2.0 / s }).sqrt() * (PI * (2.0 * n + 1.0) * k / (2.0 * s)).cos()
        };
        let dst =
            |k: f64, n: f64| 2.0 / (2.0 * s + 1.0).sqrt() * (PI * (2.0 * k + 1.0) * (n + 1.0) / (2.0 * s + 1.0)).sin();
        for (name, text, basis) in
            [("DCT", "DCT-II", &dct as &dyn Fn(f64, f64) -> f64), ("DST", "DST-VII", &dst as &dyn Fn(f64, f64) -> f64)]
        {
            writeln!(expected, "\n/// {text} of {side}.\n#[rustfmt::skip]").unwrap();
            writeln!(expected, "pub const {name}{side}: [i16; {}] = [", side * side).unwrap();
            for k in 0..side {
                let row: Vec<String> =
                    (0..side).map(|n| ((basis(k as f64, n as f64) * 4096.0).round() as i16).to_string()).collect();
                writeln!(expected, "    {},", row.join(", ")).unwrap();
            }
            expected.push_str("];\n");
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/recon/transform_bases.rs");
    if std::env::var_os("WATERFILL_WRITE_TABLES").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), expected, "the formula and src/recon/transform_bases.rs differ");
}
