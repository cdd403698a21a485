//! Head of a packed file: its files, and a table of records (section 11 of `docs/BITSTREAM.md`).

use waterfill_codec::entropy::models::Coder;
use waterfill_codec::syntax::text::code_text;

use crate::container::names::check_names;
use crate::container::source::{Record, Stored};
use crate::error::FileError;
use crate::safetensors_file::MAX_HEADER;

type Result<T> = std::result::Result<T, FileError>;

/// Most records; a safetensors header of [`MAX_HEADER`] names fewer tensors.
const MAX_RECORDS: u64 = 4_000_000;
/// Most files.
const MAX_FILES: u64 = 1 << 16;
/// Most bytes of names and first bytes of files.
pub(super) const MAX_TEXT: u64 = MAX_HEADER + 8;

/// Head of a packed file.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// True for a directory, false for one file without a name.
    pub directory: bool,
    pub files: Vec<Entry>,
    /// Records of all files, in order.
    pub records: Vec<Record>,
}

/// A file.
#[derive(Debug, Default, Clone)]
pub(super) struct Entry {
    /// Path in the directory; empty for one file alone.
    pub name: String,
    /// Its first bytes: header length and header, or the whole file.
    pub prefix: Vec<u8>,
    /// BLAKE3 of the whole file, truncated.
    pub digest: [u8; 16],
    /// Records of the bytes behind the first.
    pub records: usize,
}

impl Head {
    /// Codes the head of a version; version 1 has one file and no records that are equal to another.
    pub fn code<C: Coder>(&mut self, coder: &mut C, version: u32) -> Result<()> {
        if version == 1 {
            return self.code_first(coder);
        }
        self.directory = coder.raw(1, self.directory.into()) == 1;
        let files = limited("files", code_u64(coder, self.files.len() as u64), MAX_FILES)?;
        let (mut lengths, mut text, mut records) = (Vec::new(), 0, 0);
        for n in 0..files as usize {
            if coder.exhausted() {
                return Err(FileError::HeadEnds { record: n, records: files });
            }
            if self.files.len() <= n {
                self.files.push(Entry::default());
            }
            let file = &mut self.files[n];
            let [name, prefix] = [file.name.len(), file.prefix.len()].map(|length| code_u64(coder, length as u64));
            text = limited("bytes of names and headers", name.saturating_add(prefix).saturating_add(text), MAX_TEXT)?;
            file.records = limited("records", code_u64(coder, file.records as u64), MAX_RECORDS)? as usize;
            records = limited("records", records + file.records as u64, MAX_RECORDS)?;
            file.digest.iter_mut().for_each(|b| *b = coder.raw(8, (*b).into()) as u8);
            lengths.push([name as usize, prefix as usize]);
        }
        let mut all: Vec<u8> = Vec::new();
        self.files.iter().for_each(|file| all.extend([file.name.as_bytes(), &file.prefix].concat()));
        code_text(coder, &mut all, text as usize);
        let mut rest = all.as_slice();
        for (file, lengths) in self.files.iter_mut().zip(lengths) {
            let [name, prefix] = lengths.map(|length| match rest.split_at_checked(length) {
                Some((part, others)) => {
                    rest = others;
                    Ok(part.to_vec())
                }
                None => Err(FileError::HeadMismatch),
            });
            file.name = String::from_utf8(name?).map_err(|_| FileError::HeadMismatch)?;
            file.prefix = prefix?;
        }
        match self.directory {
            true => check_names(self.files.iter().map(|file| &file.name))?,
            false if self.files.len() != 1 => return Err(FileError::HeadMismatch),
            false => {}
        }
        self.code_records(coder, records, 2)
    }

    fn code_first<C: Coder>(&mut self, coder: &mut C) -> Result<()> {
        if self.files.is_empty() {
            self.files.push(Entry::default());
        }
        let file = &mut self.files[0];
        let prefix = limited("bytes of header", code_u64(coder, file.prefix.len() as u64), MAX_TEXT)?;
        code_text(coder, &mut file.prefix, prefix as usize);
        file.digest.iter_mut().for_each(|b| *b = coder.raw(8, (*b).into()) as u8);
        let count = limited("records", code_u64(coder, self.records.len() as u64), MAX_RECORDS)?;
        file.records = count as usize;
        self.code_records(coder, count, 1)
    }

    /// Codes the records, their kinds in `bits`.
    fn code_records<C: Coder>(&mut self, coder: &mut C, count: u64, bits: u32) -> Result<()> {
        for n in 0..count as usize {
            if coder.exhausted() {
                return Err(FileError::HeadEnds { record: n, records: count });
            }
            if self.records.len() <= n {
                self.records.push(Record::default());
            }
            let kind = coder.raw(
                bits,
                match self.records[n].stored {
                    Stored::Plain { .. } => 0,
                    Stored::Coded { .. } => 1,
                    Stored::Equal { .. } => 2,
                },
            );
            let bytes = code_u64(coder, self.records[n].bytes);
            let stored = match (kind, self.records[n].stored) {
                (0, stored) => {
                    let check = if let Stored::Plain { check } = stored { check } else { 0 };
                    let low = coder.raw_wide(32, check as u32);
                    Stored::Plain { check: u64::from(coder.raw_wide(32, (check >> 32) as u32)) << 32 | u64::from(low) }
                }
                (1, Stored::Coded { bytes }) => Stored::Coded { bytes: code_u64(coder, bytes) },
                (1, _) => Stored::Coded { bytes: code_u64(coder, 0) },
                (2, stored) => {
                    let to = if let Stored::Equal { to } = stored { to } else { 0 };
                    let to = code_u64(coder, to as u64) as usize;
                    // A record before it that has bytes of its own, as many.
                    let fits = |other: &Record| other.bytes == bytes && !matches!(other.stored, Stored::Equal { .. });
                    if !self.records[..n].get(to).is_some_and(fits) {
                        return Err(FileError::HeadMismatch);
                    }
                    Stored::Equal { to }
                }
                _ => return Err(FileError::HeadMismatch),
            };
            self.records[n] = Record { bytes, stored };
        }
        Ok(())
    }
}

fn limited(field: &'static str, found: u64, most: u64) -> Result<u64> {
    if found > most { Err(FileError::HeadLimit { field, found, most }) } else { Ok(found) }
}

/// A number: its length in bits, then its bits below the first.
fn code_u64<C: Coder>(coder: &mut C, value: u64) -> u64 {
    let bits = coder.raw(7, (u64::BITS - value.leading_zeros()).min(64)).min(64);
    if bits < 2 {
        return bits.into();
    }
    let low = bits - 1;
    let rest = value & ((1 << low) - 1);
    let (first, second) = (low.min(32), low.saturating_sub(32));
    let first_part = coder.raw_wide(first, (rest & u64::from(u32::MAX) & ((1u64 << first) - 1)) as u32);
    let second_part = coder.raw_wide(second, (rest >> 32) as u32);
    1 << low | u64::from(second_part) << 32 | u64::from(first_part)
}
