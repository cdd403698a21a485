//! Tensors as bytes, for states that outlive a process.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;

/// Element size, number of sides, sides, then little-endian elements of an f32 or f64 tensor.
///
/// # Errors
/// As the tensor library says.
pub fn pack(t: &Tensor) -> Result<Vec<u8>> {
    let t = t.to_device(&Device::Cpu)?;
    let size = t.dtype().size_in_bytes();
    let mut bytes = Vec::with_capacity(2 + 8 * t.rank() + size * t.elem_count());
    bytes.extend([size as u8, t.rank() as u8]);
    t.dims().iter().for_each(|&n| bytes.extend((n as u64).to_le_bytes()));
    let flat = t.flatten_all()?;
    match t.dtype() {
        DType::F64 => flat.to_vec1::<f64>()?.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        _ => flat.to_vec1::<f32>()?.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
    }
    Ok(bytes)
}

/// Reads [`pack`]'s bytes; `None` when they are no tensor.
pub fn unpack(bytes: &[u8], device: &Device) -> Option<Tensor> {
    let (&[size, rank], rest) = bytes.split_first_chunk::<2>()?;
    let (sides, data) = rest.split_at_checked(8 * usize::from(rank))?;
    let shape: Vec<usize> =
        sides.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize).collect();
    let count = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s))?;
    if count.checked_mul(usize::from(size))? != data.len() {
        return None;
    }
    match size {
        4 => {
            let values = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
            Tensor::from_vec(values.collect::<Vec<f32>>(), shape, device).ok()
        }
        8 => {
            let values = data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")));
            Tensor::from_vec(values.collect::<Vec<f64>>(), shape, device).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_and_rubbish_does_not() {
        let t = Tensor::new(&[[1.5f32, -2.0, 0.0], [3.0, 4.0, f32::MIN_POSITIVE]], &Device::Cpu).unwrap();
        let bytes = pack(&t).unwrap();
        let back = unpack(&bytes, &Device::Cpu).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), t.to_vec2::<f32>().unwrap());
        for end in 0..bytes.len() {
            assert!(unpack(&bytes[..end], &Device::Cpu).is_none());
        }
    }
}
