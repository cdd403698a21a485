//! Directories in the compressed-tensors format, as vLLM and transformers load them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use waterfill_checkpoint::writer::{Data, Entry, write_file};
use waterfill_checkpoint::{Checkpoint, Element};
use waterfill_codec::Minifloat;

use crate::packed::Scheme;
use crate::{ExportError, Result};

/// A matrix as the format stores it.
pub struct Stored {
    /// How it is quantised.
    pub scheme: Scheme,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Codes: words of four or eight of them, the first in the lowest bits, or FP8 patterns.
    pub codes: Vec<u8>,
    /// Scales, rows by groups.
    pub scales: Vec<u8>,
    /// Type of the scales.
    pub scale_type: Element,
}

impl Stored {
    /// The same in groups of so many columns, which divide its own: scales are repeated.
    pub fn in_groups(self, group: Option<usize>) -> Self {
        let cols = self.shape[1];
        let times = match group {
            Some(group) => self.scheme.group.unwrap_or(cols) / group,
            None => 1,
        };
        let width = if self.scale_type == Element::F32 { 4 } else { 2 };
        let scales = self.scales.chunks_exact(width).flat_map(|scale| scale.repeat(times)).collect();
        Self { scales, scheme: Scheme { group: group.or(self.scheme.group), ..self.scheme }, ..self }
    }

    /// The tensors that stand for the weight `name`; `blob` keeps their bytes.
    ///
    /// # Errors
    /// Those of `blob`.
    pub fn entries<E>(
        self,
        name: &str,
        blob: impl Fn(&str, Vec<u8>) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<Vec<Entry<'static>>, E> {
        let Self { scheme, shape: [rows, cols], codes, scales, scale_type } = self;
        let entry = |part: &str, shape: Vec<usize>, element: Element, bytes: Vec<u8>| {
            let (name, length) = (format!("{name}{part}"), bytes.len() as u64);
            Ok(Entry { name, shape, plain: Some(element), data: Data::File(blob(part, bytes)?), bytes: length })
        };
        let groups = vec![rows, cols / scheme.group.unwrap_or(cols).max(1)];
        let scale = entry("_scale", groups, scale_type, scales)?;
        if scheme.float {
            return Ok(vec![entry("", vec![rows, cols], Element::F8_E4M3, codes)?, scale]);
        }
        let shape = [rows, cols].iter().flat_map(|&side| (side as i64).to_le_bytes()).collect();
        Ok(vec![
            entry("_packed", vec![rows, cols * scheme.bits as usize / 32], Element::I32, codes)?,
            scale,
            entry("_shape", vec![2], Element::I64, shape)?,
        ])
    }
}

/// Codes of `bits` bits, to which half their range is added, in words.
pub(crate) fn words(codes: impl ExactSizeIterator<Item = i32>, bits: u32) -> Vec<i32> {
    let (per_word, half) = ((32 / bits) as usize, 1 << (bits - 1));
    let mut words = vec![0u32; codes.len().div_ceil(per_word)];
    for (i, code) in codes.enumerate() {
        words[i / per_word] |= ((code + half) as u32) << (bits as usize * (i % per_word));
    }
    words.into_iter().map(|word| word as i32).collect()
}

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

/// Writes into a directory's `config.json` how its weights are quantised; `plain` are linear layers that are not.
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

/// What compressed-tensors, transformers and vLLM read.
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
