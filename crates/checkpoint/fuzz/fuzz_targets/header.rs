//! A whole coded tensor of any bytes: header, side information, and slices where the shape is small.
//! Checks are not compared under fuzzing, so that what is behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waterfill_codec::CodedTensor;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tensor) = CodedTensor::parse(bytes) else { return };
    if tensor.bytes(tensor.header().rows) <= 1 << 18 {
        let _ = tensor.decode();
        (0..tensor.slices()).for_each(|n| drop(tensor.decode_planes(n)));
    }
});
