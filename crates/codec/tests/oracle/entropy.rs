//! Sections 3 and 7.1, 7.2.

/// The header coder.
pub struct Coder<'a> {
    state: u64,
    words: &'a [u8],
}

#[derive(Clone)]
pub struct Bit {
    fast: u32,
    slow: u32,
    seen: u32,
}

pub fn bit_model() -> Bit {
    Bit { fast: 1 << 15, slow: 1 << 15, seen: 0 }
}

#[derive(Clone)]
pub struct Int {
    zero: Bit,
    sign: Bit,
    more: Vec<Bit>,
}

pub fn int_model() -> Int {
    Int { zero: bit_model(), sign: bit_model(), more: vec![bit_model(); 15] }
}

pub fn tree_model(bits: u32) -> Vec<Bit> {
    vec![bit_model(); 1 << bits]
}

fn digits(x: u32) -> u32 {
    32 - x.leading_zeros()
}

impl<'a> Coder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        if bytes.is_empty() {
            return Self { state: 1 << 16, words: bytes };
        }
        Self { state: u32::from_le_bytes(bytes[..4].try_into().unwrap()).into(), words: &bytes[4..] }
    }

    pub fn end(self) {
        assert!(self.state == 1 << 16 && self.words.is_empty(), "stream");
    }

    fn take(&mut self, start: u64, freq: u64) {
        self.state = (freq * (self.state >> 14) + self.state % (1 << 14) - start) % (1 << 32);
        if self.state < 1 << 16 {
            self.state = self.state << 16 | u64::from(u16::from_le_bytes(self.words[..2].try_into().unwrap()));
            self.words = &self.words[2..];
        }
    }

    pub fn raw(&mut self, n: u32) -> u32 {
        let freq = 1 << (14 - n);
        let value = self.state % (1 << 14) / freq;
        self.take(value * freq, freq);
        value as u32
    }

    pub fn wide(&mut self, n: u32) -> u32 {
        let (mut value, mut done) = (0, 0);
        while done < n {
            let part = (n - done).min(12);
            value |= self.raw(part) << done;
            done += part;
        }
        value
    }

    pub fn bit(&mut self, model: &mut Bit) -> bool {
        let zero = (((model.fast + model.slow) >> 3) as u64).clamp(32, (1 << 14) - 32);
        let one = self.state % (1 << 14) >= zero;
        if one {
            self.take(zero, (1 << 14) - zero)
        } else {
            self.take(0, zero)
        }
        model.seen = (model.seen + 1).min(255);
        let rate = digits(model.seen);
        for (p, rate) in [(&mut model.fast, rate.min(4)), (&mut model.slow, rate.min(7))] {
            if one { *p -= *p >> rate } else { *p += (65535 - *p) >> rate }
        }
        one
    }

    pub fn tree(&mut self, model: &mut [Bit]) -> usize {
        let mut node = 1;
        while node < model.len() {
            node = 2 * node + usize::from(self.bit(&mut model[node]));
        }
        node - model.len()
    }

    pub fn int(&mut self, model: &mut Int) -> i32 {
        if !self.bit(&mut model.zero) {
            return 0;
        }
        let negative = self.bit(&mut model.sign);
        let mut m = 1i64;
        while m <= 14 && self.bit(&mut model.more[m as usize]) {
            m += 1;
        }
        if m == 15 {
            m = 15 + self.golomb();
        }
        let m = m.min(1 << 15) as i32;
        if negative { -m } else { m }
    }

    pub fn golomb(&mut self) -> i64 {
        let mut n = 0;
        while n < 30 && self.raw(1) == 1 {
            n += 1;
        }
        (1 << n) - 1 + i64::from(self.wide(n))
    }
}

/// Symbols of samples.
pub struct Lanes<'a> {
    states: Vec<u64>,
    words: &'a [u8],
}

impl<'a> Lanes<'a> {
    pub fn new(bytes: &'a [u8], lanes: usize) -> Self {
        if bytes.is_empty() {
            return Self { states: vec![1 << 16; lanes], words: bytes };
        }
        let states = bytes[..4 * lanes].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()).into());
        Self { states: states.collect(), words: &bytes[4 * lanes..] }
    }

    pub fn end(self) {
        assert!(self.words.is_empty() && self.states.iter().all(|&s| s == 1 << 16), "symbols");
    }

    pub fn symbol(&mut self, frequencies: &[u16], row: usize, col: usize) -> usize {
        let lanes = self.states.len();
        let state = &mut self.states[(row % 32 + 32 * (col % 2)) % lanes];
        let slot = *state % (1 << 12);
        let (mut start, mut symbol) = (0, 0);
        while slot >= start + u64::from(frequencies[symbol]) {
            start += u64::from(frequencies[symbol]);
            symbol += 1;
        }
        *state = (u64::from(frequencies[symbol]) * (*state >> 12) + slot - start) % (1 << 32);
        if *state < 1 << 16 {
            *state = *state << 16 | u64::from(u16::from_le_bytes(self.words[..2].try_into().unwrap()));
            self.words = &self.words[2..];
        }
        symbol
    }
}

/// Fields of bits.
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn read(&mut self, n: u32) -> u32 {
        let mut value = 0;
        for i in 0..n {
            value |= u32::from(self.bytes[self.at / 8] >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        value
    }

    pub fn end(mut self) {
        assert_eq!(self.at.div_ceil(8), self.bytes.len(), "bits");
        while self.at < 8 * self.bytes.len() {
            assert_eq!(self.read(1), 0, "padding");
        }
    }
}
