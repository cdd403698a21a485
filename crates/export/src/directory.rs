//! Directories in the compressed-tensors format, as vLLM and transformers load them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use waterfill_checkpoint::Checkpoint;
use waterfill_checkpoint::writer::write_file;
use waterfill_codec::Minifloat;
use waterfill_model::TensorRole;

use crate::error::{ExportError, Result};
use crate::scheme::Scheme;

/// Values of a weight that was written under a scheme: codes times scales.
///
/// # Errors
/// Tensors that are not there or have another size.
pub fn read_values(written: &Checkpoint, name: &str, [rows, cols]: [usize; 2], scheme: Scheme) -> Result<Vec<f32>> {
    let codes = written.read_raw(&if scheme.float { name.to_string() } else { format!("{name}_packed") })?;
    let scale = format!("{name}_scale");
    let groups = cols / scheme.group.unwrap_or(cols).max(1);
    let scales = written.read_f32(&scale, &[rows, groups])?;
    let expected = rows * cols * scheme.bits as usize / 8;
    if codes.len() != expected {
        let reason = format!("{name}: {} bytes of codes, expected {expected}", codes.len());
        return Err(ExportError::File { path: written.dir().into(), reason });
    }
    let (per_word, half) = ((32 / scheme.bits) as usize, 1 << (scheme.bits - 1));
    let code = |i: usize| {
        if scheme.float {
            return Minifloat::E4M3.decode(codes[i]);
        }
        let word: [u8; 4] = codes[i / per_word * 4..][..4].try_into().expect("four bytes");
        let word = u32::from_le_bytes(word) >> (scheme.bits as usize * (i % per_word));
        ((word & ((1 << scheme.bits) - 1)) as i32 - half) as f32
    };
    Ok((0..rows * cols).map(|i| code(i) * scales[i / cols * groups + i % cols / (cols / groups)]).collect())
}

/// Writes into a directory's `config.json` how its weights are quantized; `plain` are linear layers that are not.
///
/// # Errors
/// A file that cannot be read or written.
pub fn describe<'a>(dir: &Path, schemes: &BTreeMap<&str, Scheme>, plain: impl Iterator<Item = &'a str>) -> Result<()> {
    let path = dir.join("config.json");
    let text = std::fs::read(&path).map_err(|source| ExportError::Io { path: path.clone(), source })?;
    let mut config: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| ExportError::File { path: path.clone(), reason: e.to_string() })?;
    config.insert("quantization_config".into(), quantization_config(schemes, plain));
    Ok(write_file(&path, serde_json::to_string_pretty(&config).expect("JSON from JSON").as_bytes())?)
}

/// The `quantization_config` that compressed-tensors, transformers and vLLM read.
fn quantization_config<'a>(schemes: &BTreeMap<&str, Scheme>, plain: impl Iterator<Item = &'a str>) -> Value {
    let mut groups: BTreeMap<Scheme, Vec<String>> = BTreeMap::new();
    let module = |name: &str| name.trim_end_matches(".weight").to_string();
    schemes.iter().for_each(|(name, scheme)| groups.entry(*scheme).or_default().push(module(name)));
    let format = |scheme: &Scheme| if scheme.float { "float-quantized" } else { "pack-quantized" };
    let mut formats: Vec<&str> = groups.keys().map(format).collect();
    formats.dedup();
    let group = |(n, (scheme, targets)): (usize, (&Scheme, &Vec<String>))| {
        let weights = json!({
            "num_bits": scheme.bits, "type": if scheme.float { "float" } else { "int" }, "symmetric": true,
            "dynamic": false, "actorder": null,
            "strategy": if scheme.group.is_some() { "group" } else { "channel" }, "group_size": scheme.group,
            "block_structure": null, "observer": "minmax", "observer_kwargs": {},
        });
        let group = json!({
            "targets": targets, "weights": weights, "input_activations": null, "output_activations": null,
            "format": format(scheme),
        });
        (format!("group_{n}"), group)
    };
    let groups: serde_json::Map<String, Value> = groups.iter().enumerate().map(group).collect();
    let ignore: Vec<String> = std::iter::once(module(&TensorRole::Head.name())).chain(plain.map(module)).collect();
    let format = if let [one] = formats[..] { one } else { "mixed-precision" };
    json!({
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": groups, "ignore": ignore, "kv_cache_scheme": null, "global_compression_ratio": null,
    })
}
