//! A second decoder, written after `docs/BITSTREAM.md` section by section: slow, plain, and with nothing
//! of the crate but its tables of numbers. It panics where a decoder refuses.

#[allow(dead_code)]
#[path = "../../src/entropy/table_data.rs"]
mod tables;
#[allow(dead_code)]
#[path = "../../src/recon/transform_bases.rs"]
mod transforms;

mod entropy;
mod header;
mod lattice;
mod reconstruct;
mod samples;

use header::{Tensor, Tile};

fn check(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(blake3::hash(bytes).as_bytes()[..8].try_into().unwrap())
}

/// Decoded bytes of a coded tensor.
pub fn decode(bytes: &[u8]) -> Vec<u8> {
    let (tensor, slices) = header::parse(bytes, None);
    decode_slices(&tensor, &slices)
}

/// Decoded bytes of the refinement of a coded tensor.
pub fn refine(bytes: &[u8], before: &[u8]) -> Vec<u8> {
    let (base, slices) = header::parse(before, None);
    let values = decode_slices(&base, &slices);
    let (mut tensor, slices) = header::parse(bytes, Some(&base));
    let pattern = |b: &[u8]| b.iter().rev().fold(0u32, |v, &x| v << 8 | u32::from(x));
    tensor.before = values.chunks(base.bits() / 8).map(pattern).collect();
    decode_slices(&tensor, &slices)
}

fn decode_slices(tensor: &Tensor, slices: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, slice) in slices.iter().enumerate() {
        let top = n * tensor.slice_rows;
        out.extend(decode_slice(tensor, slice, top, tensor.rows.min(top + tensor.slice_rows)));
    }
    assert_eq!(&blake3::hash(&out).as_bytes()[..16], tensor.digest, "digest");
    out
}

/// Section 5: rows `top..bottom`.
fn decode_slice(tensor: &Tensor, slice: &[u8], top: usize, bottom: usize) -> Vec<u8> {
    let length = |n: usize| u32::from_le_bytes(slice[4 * n..4 * n + 4].try_into().unwrap()) as usize;
    let (a, b, c) = (12 + length(0), 12 + length(0) + length(1), 12 + length(0) + length(1) + length(2));
    let (tiles, in_planes, groups) = header::tiles(tensor, &slice[12..a], (top, bottom));
    assert!(tensor.dtype < 3 || tiles.iter().all(|t| t.format == 3), "lossy tiles in dtype {}", tensor.dtype);
    let mut found = samples::read(tensor, &tiles, (top, bottom), [&slice[a..b], &slice[b..c], &slice[c..]]);
    for (n, levels) in in_planes {
        let (row, col) = (n / tensor.across() * 16, n % tensor.across() * 16);
        for (k, level) in levels.into_iter().enumerate() {
            found[row + k / 16][col + k % 16] = level;
        }
    }
    let patterns = match (&tensor.lattice, groups) {
        (Some(lattice), Some(groups)) => {
            let pattern = |row, col| lattice.pattern(tensor, &groups, top, (row, col), found[row - top][col]);
            (top..bottom).map(|row| (0..tensor.cols).map(|col| pattern(row, col)).collect()).collect()
        }
        _ => reconstruct::patterns(tensor, &tiles, top, &found),
    };
    match tensor.bits() {
        4 => patterns.concat().chunks(2).map(|p| (p[0] | p[1] << 4) as u8).collect(),
        bits => patterns.concat().iter().flat_map(|p| p.to_le_bytes()[..bits / 8].to_vec()).collect(),
    }
}
