//! Tile headers of any tools and shape: a header that says what the input chooses, then side
//! information and one slice of any bytes.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use waterfill_codec::syntax::header::Header;
use waterfill_codec::syntax::tools::Tools;
use waterfill_codec::{CodedTensor, Dtype};

#[derive(Arbitrary, Debug)]
struct Input {
    dtype: u8,
    lanes: u8,
    rows: u8,
    cols: u8,
    tools: u32,
    step: i16,
    sigma: i16,
    side: Vec<u8>,
    headers: Vec<u8>,
    escapes: Vec<u8>,
    bits: Vec<u8>,
    symbols: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let tools = Tools(input.tools & 0x1ffff);
    let mut slice = Vec::new();
    for part in [&input.headers, &input.escapes, &input.bits] {
        slice.extend_from_slice(&(part.len() as u32).to_le_bytes());
    }
    [&input.headers, &input.escapes, &input.bits, &input.symbols].iter().for_each(|p| slice.extend_from_slice(p));
    let (rows, cols) = (usize::from(input.rows), usize::from(input.cols));
    let header = Header {
        dtype: Dtype::ALL[usize::from(input.dtype) % 7],
        lanes: 1 << (input.lanes % 7),
        slice_rows: 256,
        rows,
        cols,
        step_base: input.step.into(),
        sigma_base: input.sigma.into(),
        tools,
        side_bytes: input.side.len(),
        digest: [0; 16],
        slices: if rows * cols > 0 { vec![(slice.len() as u32, 0)] } else { Vec::new() },
    };
    let mut bytes = header.write(&input.side);
    bytes.extend_from_slice(&input.side);
    if rows * cols > 0 {
        bytes.extend_from_slice(&slice);
    }
    if let Ok(tensor) = CodedTensor::parse(&bytes) {
        let _ = tensor.decode();
        (0..tensor.slices()).for_each(|n| drop(tensor.decode_planes(n)));
    }
});
