//! Frame of packed files and deltas: magic and version, blobs, and a head at the end with its length and check
//! (section 11 of `docs/BITSTREAM.md`).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use waterfill_codec::syntax::header::check_of;

use crate::error::{AtPath, CheckpointError, FileError, Result};

/// Bytes around blobs and head.
const AROUND: u64 = 24;

/// A kind of file.
pub(crate) struct Frame {
    pub magic: [u8; 4],
    pub version: u32,
    /// First version that is still read.
    pub oldest: u32,
    /// In messages, such as `packed file`.
    pub kind: &'static str,
}

/// An open file and its head.
pub(crate) struct Framed {
    pub file: File,
    /// Bytes of the whole file.
    pub size: u64,
    pub version: u32,
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
    /// Offset of the first blob.
    pub const START: u64 = 8;

    /// Writes magic and version, which blobs follow.
    pub fn begin(&self, out: &mut dyn Write, to: &Path) -> Result<()> {
        let start = [&self.magic[..], &self.version.to_le_bytes()].concat();
        out.write_all(&start).at(to)
    }

    /// Writes the head, which follows the blobs.
    pub fn end(&self, out: &mut dyn Write, head: &[u8], to: &Path) -> Result<()> {
        let length = (head.len() as u64).to_le_bytes();
        let check = check_of(&[&self.magic, &self.version.to_le_bytes(), head, &length]).to_le_bytes();
        [head, &length, &check].iter().try_for_each(|part| out.write_all(part)).at(to)
    }

    /// True if a file begins with the magic.
    pub fn is(&self, path: &Path) -> bool {
        let mut magic = [0; 4];
        File::open(path).and_then(|f| f.read_exact_at(&mut magic, 0)).is_ok() && magic == self.magic
    }

    /// Opens a file and checks its head.
    pub fn open(&self, path: &Path) -> Result<Framed> {
        let kind = self.kind;
        let wrong = |reason| CheckpointError::file(path, reason);
        let file = File::open(path).at(path)?;
        let size = file.metadata().at(path)?.len();
        if size < AROUND {
            return Err(wrong(FileError::TooShort { size, kind }));
        }
        let read = |at: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, at).map(|()| bytes).at(path)
        };
        let (start, end) = (read(0, Self::START)?, read(size - 16, 16)?);
        let magic: [u8; 4] = start[..4].try_into().expect("four bytes");
        if magic != self.magic {
            return Err(wrong(FileError::Magic { kind, found: magic, expected: self.magic }));
        }
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        let (length, found) = (word(&end[..8]), word(&end[8..]));
        if length > size - AROUND {
            return Err(wrong(FileError::HeadLength { length, size }));
        }
        let head = read(size - 16 - length, length)?;
        let computed = check_of(&[&start[..4], &start[4..], &head, &end[..8]]);
        if computed != found && !cfg!(fuzzing) {
            return Err(wrong(FileError::HeadCheck { found, computed }));
        }
        let version = u32::from_le_bytes(start[4..].try_into().expect("four bytes"));
        if !(self.oldest..=self.version).contains(&version) {
            let expected = match self.oldest == self.version {
                true => self.version.to_string(),
                false => format!("{} to {}", self.oldest, self.version),
            };
            return Err(wrong(FileError::Version { kind, found: version.to_string(), expected }));
        }
        Ok(Framed { file, size, version, head })
    }
}

/// Called with the bytes done so far.
pub type OnBytes<'a> = &'a (dyn Fn(u64) + Sync);
