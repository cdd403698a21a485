//! Values of a GGUF file's metadata, and its constants.

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
pub(super) const VERSION: u32 = 3;
pub(super) const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Value {
    /// Appends type and value as they are in a file.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let code = |out: &mut Vec<u8>, code: u32| out.extend_from_slice(&code.to_le_bytes());
        let array = |out: &mut Vec<u8>, element: u32, count: usize| {
            code(out, 9);
            code(out, element);
            out.extend_from_slice(&(count as u64).to_le_bytes());
        };
        match self {
            Self::U32(v) => {
                code(out, 4);
                out.extend_from_slice(&v.to_le_bytes());
            }
            Self::F32(v) => {
                code(out, 6);
                out.extend_from_slice(&v.to_le_bytes());
            }
            Self::Bool(v) => {
                code(out, 7);
                out.push((*v).into());
            }
            Self::Text(v) => {
                code(out, 8);
                put_text(out, v);
            }
            Self::I32s(all) => {
                array(out, 5, all.len());
                all.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
            }
            Self::F32s(all) => {
                array(out, 6, all.len());
                all.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
            }
            Self::Texts(all) => {
                array(out, 8, all.len());
                all.iter().for_each(|v| put_text(out, v));
            }
        }
    }
}
