//! What packed files and deltas have in common: magic and version, blobs, and a head at the end with its length and check
//! (section 11 of `docs/BITSTREAM.md`).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use waterfill_codec::header::check_of;

use crate::error::{CheckpointError, Result};

/// Bytes around blobs and head.
const AROUND: u64 = 24;

/// A kind of file.
pub(crate) struct Frame {
    pub magic: [u8; 4],
    pub version: u32,
    /// In messages, such as `packed file`.
    pub what: &'static str,
}

/// An open file and its head.
pub(crate) struct Framed {
    pub file: File,
    /// Bytes of the whole file.
    pub size: u64,
    /// Coded.
    pub head: Vec<u8>,
}

impl Framed {
    /// Bytes of all blobs.
    pub fn blobs(&self) -> u64 {
        self.size - AROUND - self.head.len() as u64
    }
}

impl Frame {
    /// Where blobs begin.
    pub const START: u64 = 8;

    /// Writes what is before the blobs.
    pub fn begin(&self, out: &mut dyn Write, to: &Path) -> Result<()> {
        let start = [&self.magic[..], &self.version.to_le_bytes()].concat();
        out.write_all(&start).map_err(CheckpointError::io(to))
    }

    /// Writes the head after them.
    pub fn end(&self, out: &mut dyn Write, head: &[u8], to: &Path) -> Result<()> {
        let length = (head.len() as u64).to_le_bytes();
        let check = check_of(&[&self.magic, &self.version.to_le_bytes(), head, &length]).to_le_bytes();
        [head, &length, &check].iter().try_for_each(|part| out.write_all(part)).map_err(CheckpointError::io(to))
    }

    /// Whether a file begins as these do.
    pub fn is(&self, path: &Path) -> bool {
        let mut magic = [0; 4];
        File::open(path).and_then(|f| f.read_exact_at(&mut magic, 0)).is_ok() && magic == self.magic
    }

    /// Opens a file and checks its head.
    pub fn open(&self, path: &Path) -> Result<Framed> {
        let what = self.what;
        let wrong = |reason: String| CheckpointError::file(path, reason);
        let file = File::open(path).map_err(CheckpointError::io(path))?;
        let size = file.metadata().map_err(CheckpointError::io(path))?.len();
        if size < AROUND {
            return Err(wrong(format!("{size} bytes are too few for a {what}")));
        }
        let read = |at: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, at).map(|()| bytes).map_err(CheckpointError::io(path))
        };
        let (start, end) = (read(0, Self::START)?, read(size - 16, 16)?);
        if start[..4] != self.magic {
            let expected = String::from_utf8_lossy(&self.magic);
            let found = &start[..4];
            return Err(wrong(format!("not a {what}: the first four bytes are {found:02x?}, expected {expected:?}")));
        }
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        let (length, found) = (word(&end[..8]), word(&end[8..]));
        if length > size - AROUND {
            return Err(wrong(format!("truncated or damaged: a head of {length} bytes in a file of {size}")));
        }
        let head = read(size - 16 - length, length)?;
        let computed = check_of(&[&start[..4], &start[4..], &head, &end[..8]]);
        if computed != found && !cfg!(fuzzing) {
            let damage = format!("the head is damaged: its check is {found:016x}, the bytes give {computed:016x}");
            return Err(wrong(damage));
        }
        if start[4..] != self.version.to_le_bytes() {
            let version = u32::from_le_bytes(start[4..].try_into().expect("four bytes"));
            return Err(wrong(format!("version {version} of a {what}, this build reads {}", self.version)));
        }
        Ok(Framed { file, size, head })
    }
}
