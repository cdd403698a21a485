//! A stream of raw bits, least significant bit first.

/// Collects bits.
#[derive(Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// Appends the low `bits` (at most 32) of `value`.
    #[inline]
    pub fn write(&mut self, bits: u32, value: u32) {
        self.pending |= u64::from(value) << self.count;
        self.count += bits;
        if self.count >= 32 {
            self.bytes.extend_from_slice(&(self.pending as u32).to_le_bytes());
            self.pending >>= 32;
            self.count -= 32;
        }
    }

    /// Appends the low `bits` (at most 56) of `value`.
    #[inline]
    pub fn write_long(&mut self, bits: u32, value: u64) {
        let low = bits.min(28);
        self.write(low, (value & ((1 << low) - 1)) as u32);
        self.write(bits - low, (value >> low) as u32);
    }

    /// Appends the low `bits` (at most 56) of each word.
    #[inline]
    pub fn write_words<const N: usize>(&mut self, bits: u32, words: &[u64; N]) {
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
        // What is pending is less than a byte: it and a word fit eight.
        let mut at = self.bytes.len();
        self.bytes.resize(at + 8 * N, 0);
        let (mut pending, mut count) = (self.pending, self.count);
        for word in words {
            pending |= word << count;
            count += bits;
            self.bytes[at..at + 8].copy_from_slice(&pending.to_le_bytes());
            at += (count / 8) as usize;
            pending >>= count & !7;
            count %= 8;
        }
        self.bytes.truncate(at);
        (self.pending, self.count) = (pending, count);
    }

    /// The bytes, the last one filled up with zeros.
    pub fn finish(mut self) -> Vec<u8> {
        let rest = self.pending.to_le_bytes();
        self.bytes.extend_from_slice(&rest[..self.count.div_ceil(8) as usize]);
        self.bytes
    }
}

/// Reads bits; past the end it returns zeros, and [`BitReader::finish`] returns false.
#[derive(Debug, Clone)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    /// Starts at the first bit.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next 57 bits or more, without moving on.
    #[inline]
    pub fn peek(&self) -> u64 {
        let at = self.position / 8;
        let word = match self.bytes.get(at..at + 8) {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().expect("eight bytes")),
            None => {
                let mut last = [0; 8];
                if let Some(rest) = self.bytes.get(at..) {
                    last[..rest.len()].copy_from_slice(rest);
                }
                u64::from_le_bytes(last)
            }
        };
        word >> (self.position % 8)
    }

    /// Skips bits.
    #[inline]
    pub fn advance(&mut self, bits: usize) {
        self.position += bits;
    }

    /// The next `bytes` bytes and eight more, where they begin with a byte and are all there; moves on by
    /// `bytes`.
    #[inline]
    pub fn take_bytes(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let at = self.position / 8;
        let taken = self.bytes.get(at..at + bytes + 8).filter(|_| self.position.is_multiple_of(8))?;
        self.position += 8 * bytes;
        Some(taken)
    }

    /// Reads `bits` (at most 32) bits.
    #[inline]
    pub fn read(&mut self, bits: u32) -> u32 {
        let value = self.peek() & ((1 << bits) - 1);
        self.position += bits as usize;
        value as u32
    }

    /// True when all bytes were read, and no more, and the bits that fill the last one are zero.
    pub fn finish(&self) -> bool {
        let padding = self.bytes.len() * 8 - self.position.min(self.bytes.len() * 8);
        self.position <= self.bytes.len() * 8 && padding < 8 && (padding == 0 || self.peek() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_are_read_back(fields in prop::collection::vec((0u32..=32, any::<u32>()), 0..200)) {
            let mut writer = BitWriter::default();
            let cut = |bits: u32, value: u32| value & ((1u64 << bits) - 1) as u32;
            fields.iter().for_each(|&(bits, value)| writer.write(bits, cut(bits, value)));
            let bytes = writer.finish();
            prop_assert_eq!(bytes.len(), fields.iter().map(|f| f.0 as usize).sum::<usize>().div_ceil(8));
            let mut reader = BitReader::new(&bytes);
            for &(bits, value) in &fields {
                prop_assert_eq!(reader.read(bits), cut(bits, value));
            }
            prop_assert!(reader.finish());
            reader.read(9);
            prop_assert!(!reader.finish());
        }

        #[test]
        fn words_are_written_as_fields_are(first in 0u32..32, bits in 1u32..=56, words: [u64; 4]) {
            let words = words.map(|w| w & ((1 << bits) - 1));
            let (mut one, mut other) = (BitWriter::default(), BitWriter::default());
            for writer in [&mut one, &mut other] {
                writer.write(first, 0);
            }
            one.write_words(bits, &words);
            words.iter().for_each(|&w| other.write_long(bits, w));
            prop_assert_eq!(one.finish(), other.finish());
        }
    }
}
