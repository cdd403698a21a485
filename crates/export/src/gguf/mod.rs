//! The GGUF file, version 3 (ggml's `docs/gguf.md`): key-value pairs, a table of tensors, then their data, 32-byte aligned.
//! candle's own writer holds all tensors at once; this one asks for them one after the other.

mod read;
mod value;
mod write;

pub use read::GgufFile;
pub use value::Value;
pub use write::{Data, GgufTensor, head_bytes, write_gguf};

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::types::GgufType;

    #[test]
    fn what_is_written_is_read_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let values: Vec<f32> = (0..3 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
        let (flat, weighted) = (vec![1.0; 256], (0..256).map(|i| 1.0 + i as f32).collect::<Vec<_>>());
        let mut tensors = Vec::new();
        let mut expected = Vec::new();
        for kind in GgufType::MATRICES {
            let quantized = kind.quantize("x", &values, if kind == GgufType::Q2K { &weighted } else { &flat }).unwrap();
            assert_eq!(quantized.bytes.len(), kind.bytes(values.len()));
            let error: f32 = quantized.values.iter().zip(&values).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(error / values.len() as f32 <= 0.03, "{kind:?} {error}");
            let data = Data::Bytes(quantized.bytes);
            tensors.push(GgufTensor { name: kind.name().into(), shape: vec![3, 256], kind, data });
            expected.push(quantized.values);
        }
        let metadata = [
            ("general.architecture".to_string(), Value::Text("llama".into())),
            ("tokens".to_string(), Value::Texts(vec!["a".into(), "bc".into()])),
            ("scores".to_string(), Value::F32s(vec![0.5, -1.0])),
            ("kinds".to_string(), Value::I32s(vec![1, -3])),
            ("flag".to_string(), Value::Bool(true)),
        ];
        write_gguf(&path, &metadata, &tensors).unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.metadata(), metadata);
        for (tensor, values) in tensors.iter().zip(&expected) {
            assert_eq!(file.values(&tensor.name).unwrap(), *values, "{}", tensor.name);
        }
        // candle's reader agrees.
        let mut reader = std::io::BufReader::new(File::open(&path).unwrap());
        let content = candle_core::quantized::gguf_file::Content::read(&mut reader).unwrap();
        assert_eq!(content.metadata.len(), metadata.len());
        let theirs = content.tensor(&mut reader, "q4_K", &candle_core::Device::Cpu).unwrap();
        let theirs: Vec<f32> =
            theirs.dequantize(&candle_core::Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(theirs, expected[3]);

        let bytes = std::fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(67) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(GgufFile::open(&path).is_err(), "{length}");
        }
        for at in 0..600 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            std::fs::write(&path, damaged).unwrap();
            // An error or other values, but no panic.
            if let Ok(file) = GgufFile::open(&path) {
                let names: Vec<String> = file.tensors().map(|(name, ..)| name.to_string()).collect();
                names.iter().for_each(|name| drop(file.values(name)));
            }
        }
    }

    #[test]
    fn what_would_not_come_back_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let tensor = |name: &str, shape: &[usize]| {
            let data = Data::Bytes(vec![0; 4 * shape.iter().product::<usize>()]);
            GgufTensor { name: name.into(), shape: shape.to_vec(), kind: GgufType::F32, data }
        };
        let message = write_gguf(&path, &[], &[tensor("a", &[2]), tensor("a", &[2])]).unwrap_err().to_string();
        assert!(message.contains("x.gguf") && message.contains("1 tensors come back"), "{message}");
        let message = write_gguf(&path, &[], &[tensor("a", &[1, 1, 1, 1, 2])]).unwrap_err().to_string();
        assert!(message.contains("tensor a has 5 dimensions"), "{message}");
        let nan = [("nan".to_string(), Value::F32s(vec![f32::NAN])), ("e".into(), Value::Text(String::new()))];
        write_gguf(&path, &nan, &[tensor("", &[0]), tensor("\u{fc}", &[])]).unwrap();
    }
}
