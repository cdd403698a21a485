//! llama.cpp's names and layout of tensors.

use waterfill_model::{ModelConfig, Projection, RopeScaling, TensorRole};

/// A tensor's name in GGUF, and whether its rows are those of heads that llama.cpp rotates in pairs side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Such as `blk.3.ffn_up.weight`.
    pub gguf: String,
    /// Number of heads with permuted rows, or 0.
    pub permuted: usize,
}

impl Name {
    /// The name of a tensor of a Hugging Face checkpoint; `None` for one that GGUF has no place for.
    pub fn of(name: &str, architecture: &str, config: &ModelConfig) -> Option<Self> {
        let plain = |gguf: &str| Some(Self { gguf: gguf.into(), permuted: 0 });
        let role = TensorRole::parse(name)?;
        let (block, part, end) = match role {
            TensorRole::Embedding => return plain("token_embd.weight"),
            TensorRole::FinalNorm => return plain("output_norm.weight"),
            TensorRole::Head => return plain("output.weight"),
            TensorRole::Linear { block, projection } => (block, part_of(projection), "weight"),
            TensorRole::Bias { block, projection } => (block, part_of(projection), "bias"),
            TensorRole::QueryNorm { block } => (block, "attn_q_norm", "weight"),
            TensorRole::KeyNorm { block } => (block, "attn_k_norm", "weight"),
            TensorRole::AttentionNorm { block } => (block, "attn_norm", "weight"),
            TensorRole::MlpNorm { block } => (block, "ffn_norm", "weight"),
        };
        // Others' graphs rotate halves, as Hugging Face's do.
        let permuted = match (architecture, part) {
            ("llama", "attn_q") => config.heads,
            ("llama", "attn_k") => config.kv_heads,
            _ => 0,
        };
        Some(Self { gguf: format!("blk.{block}.{part}.{end}"), permuted })
    }
}

/// llama.cpp's name of a linear layer.
const fn part_of(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "attn_q",
        Projection::Key => "attn_k",
        Projection::Value => "attn_v",
        Projection::Output => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    }
}

/// Rows (of `width` values each) from halves of heads to pairs, or `back`.
pub fn permute_rows(values: &[f32], width: usize, heads: usize, back: bool) -> Vec<f32> {
    if heads == 0 {
        return values.to_vec();
    }
    let head = values.len() / width / heads;
    let half = head / 2;
    let mut out = vec![0.0; values.len()];
    for (row, line) in values.chunks_exact(width).enumerate() {
        let (first, at) = (row / head * head, row % head);
        let to = if back { at % 2 * half + at / 2 } else { at % half * 2 + at / half };
        out[(first + to) * width..][..width].copy_from_slice(line);
    }
    out
}

/// Divisors of rotary frequencies, where Llama 3.1 scales them.
pub fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low, high, original } = config.rope_scaling else { return None };
    let of = |i: usize| {
        let frequency = config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64);
        let turns = original * frequency / (2.0 * std::f64::consts::PI);
        let smooth = (turns - low) / (high - low);
        let divisor = match turns {
            t if t > high => 1.0,
            t if t < low => factor,
            _ => 1.0 / ((1.0 - smooth) / factor + smooth),
        };
        divisor as f32
    };
    Some((0..config.head_dim / 2).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As convert_hf_to_gguf.py does: reshape(heads, 2, head / 2, width), axes 1 and 2 swapped.
    #[test]
    fn heads_are_rotated_in_pairs() {
        let (heads, head, width) = (3, 8, 5);
        let values: Vec<f32> = (0..heads * head * width).map(|i| i as f32).collect();
        let permuted = permute_rows(&values, width, heads, false);
        for h in 0..heads {
            for part in 0..2 {
                for i in 0..head / 2 {
                    for j in 0..width {
                        let from = ((h * 2 + part) * (head / 2) + i) * width + j;
                        let to = ((h * (head / 2) + i) * 2 + part) * width + j;
                        assert_eq!(permuted[to], values[from]);
                    }
                }
            }
        }
        assert_eq!(permute_rows(&permuted, width, heads, true), values);
    }
}
