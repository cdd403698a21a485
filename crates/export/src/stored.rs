//! A matrix in the compressed-tensors format.

use waterfill_checkpoint::Element;
use waterfill_checkpoint::writer::{Data, Entry};

use crate::scheme::Scheme;

/// A matrix as the format stores it.
pub struct Stored {
    /// How it is quantized.
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
        blob: impl Fn(&str, Vec<u8>) -> std::result::Result<Data<'static>, E>,
    ) -> std::result::Result<Vec<Entry<'static>>, E> {
        let Self { scheme, shape: [rows, cols], codes, scales, scale_type } = self;
        let entry = |part: &str, shape: Vec<usize>, element: Element, bytes: Vec<u8>| {
            let (name, length) = (format!("{name}{part}"), bytes.len() as u64);
            Ok(Entry { name, shape, plain: Some(element), data: blob(part, bytes)?, bytes: length })
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
