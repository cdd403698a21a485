//! Syntax of text, such as a safetensors header: each byte in the context of those before it (section 11 of
//! `docs/BITSTREAM.md`).

use crate::entropy::models::{BitModel, Coder};

/// Lengths of the contexts, longest first.
const ORDERS: [usize; 4] = [6, 4, 2, 1];
/// Models by order; contexts share them by hashing.
const MODELS: usize = 1 << 18;

/// Codes `length` bytes. Every bit is coded under the longest context that has been seen before
/// (in the manner of Cleary & Witten 1984), and teaches all of them.
pub fn code_text<C: Coder>(coder: &mut C, text: &mut Vec<u8>, length: usize) {
    let mut models = vec![Slot::default(); MODELS * ORDERS.len()];
    for i in 0..length {
        // A small file may declare a long text.
        if coder.exhausted() {
            return;
        }
        let mut bases = [0; ORDERS.len()];
        for (n, (base, order)) in bases.iter_mut().zip(ORDERS).enumerate() {
            *base = text[i.saturating_sub(order)..i].iter().fold(n as u32, |hash, &b| hash_step(hash, b.into()));
        }
        let value = text.get(i).copied().unwrap_or(0);
        let mut node = 1u32;
        for bit in (0..8).rev() {
            let slots = [0, 1, 2, 3].map(|n| n * MODELS + hash_step(bases[n], node) as usize % MODELS);
            let chosen = slots.into_iter().find(|&s| models[s].seen).unwrap_or(slots[3]);
            let one = coder.bit(&mut models[chosen].model, value >> bit & 1 == 1);
            for slot in slots {
                if slot != chosen {
                    models[slot].model.update(one);
                }
                models[slot].seen = true;
            }
            node = node << 1 | u32::from(one);
        }
        match text.get_mut(i) {
            Some(byte) => *byte = node as u8,
            None => text.push(node as u8),
        }
    }
}

#[derive(Clone, Default)]
struct Slot {
    model: BitModel,
    seen: bool,
}

fn hash_step(hash: u32, value: u32) -> u32 {
    let mixed = (hash ^ value).wrapping_mul(0x9e37_79b1);
    mixed ^ mixed >> 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::adaptive_rans::{Decoder, Encoder};

    fn coded(mut text: Vec<u8>) -> usize {
        let (sent, length) = (text.clone(), text.len());
        let mut encoder = Encoder::default();
        code_text(&mut encoder, &mut text, length);
        let bytes = encoder.finish();
        let (mut decoder, mut back) = (Decoder::new(&bytes), Vec::new());
        code_text(&mut decoder, &mut back, length);
        assert!(decoder.finish() && back == sent);
        bytes.len()
    }

    #[test]
    fn a_stream_that_ends_early_ends_the_text() {
        let mut text = Vec::new();
        code_text(&mut Decoder::new(&[7, 7, 7, 7, 1, 2]), &mut text, 100_000_000);
        assert!(text.len() < 1000, "{} bytes of nothing", text.len());
    }

    #[test]
    fn text_comes_back_and_repetition_is_cheap() {
        let line =
            |i: usize| format!("\"model.layers.{i}.mlp.up_proj.weight\":{{\"dtype\":\"BF16\",\"shape\":[172,64]}},");
        let header: String = (0..60).map(line).collect();
        let bytes = coded(header.clone().into_bytes());
        assert!(bytes * 8 < header.len(), "{bytes} bytes for {}", header.len());
        assert_eq!(coded(Vec::new()), 0);
        coded((0..3000u32).map(|i| ((i * i) >> 3) as u8).collect());
    }
}
